"""What recomputing blocks costs: their forward once more in every microbatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.layouts import Layout
from autoplan.memory.schedule import Block
from autoplan.pricing import Pricer, distinct
from autoplan.sites import Annotated
from autoplan.solver import Problem, ProblemBuilder
from autoplan.strategies.rule import TensorMeta

FloatArray = NDArray[np.float64]
Read = tuple[int, int]
"""A site, and the position of one of its inputs."""


class SecondRuns:
    """Seconds a step that second runs of a model's blocks take; memoised."""

    def __init__(self, annotated: Annotated, pricer: Pricer) -> None:
        self.annotated, self.pricer = annotated, pricer
        self._ops: dict[Any, FloatArray] = {}
        self._boxing: dict[Any, FloatArray] = {}
        self._conversions: dict[Any, float] = {}

    @staticmethod
    def of(annotated: Annotated, pricer: Pricer) -> SecondRuns:
        """The one of a model and a pricer."""
        key = SecondRuns, pricer
        if key not in annotated.memo:
            annotated.memo[key] = SecondRuns(annotated, pricer)
        found: SecondRuns = annotated.memo[key]
        return found

    def seconds(self, blocks: Sequence[Block], choices: Sequence[int]) -> float:
        """Of `blocks` under `choices`."""
        sites = self.annotated.sites
        parts = []
        for block in blocks:
            parts += [self.op_s(at, choices[at]) for at in block.again]
            for at, position in reads_again(self.annotated, block):
                source = sites[at].inputs[position]
                before = sites[source.site].candidates[choices[source.site]].outputs[source.output]
                after = sites[at].candidates[choices[at]].inputs[position]
                meta = sites[source.site].outputs[source.output]
                parts.append(self._runs * self._forward_s(before, after, meta))
            for at, position in gathers_again(self.annotated, block):
                source = sites[at].inputs[position]
                matrix = self._gathering(at, position)
                parts.append(float(matrix[choices[source.site], choices[at]]))
        return float(sum(parts))

    def least_s(self, block: Block) -> float:
        """What a block takes at least, whatever is chosen."""
        finite = (each[np.isfinite(each)] for each in map(self.op_times_s, block.again))
        return float(sum(each.min(initial=np.inf) for each in finite))

    def added_to(self, problem: Problem, blocks: Sequence[Block]) -> Problem:
        """The problem whose costs count the second runs of `blocks`."""
        if not blocks:
            return problem
        builder = ProblemBuilder()
        again = {at for block in blocks for at in block.again}
        for at, variable in enumerate(problem.variables):
            cost = variable.cost + self.op_times_s(at) if at in again else variable.cost
            builder.add_variable(variable.name, cost)
        for (u, v), matrix in problem.edges.items():
            builder.add_edge(u, v, matrix)
        for block in blocks:
            for at, position in reads_again(self.annotated, block):
                matrix = self._edge(at, position)
                if matrix.any():
                    builder.add_edge(self.annotated.sites[at].inputs[position].site, at, matrix)
            for at, position in gathers_again(self.annotated, block):
                matrix = self._gathering(at, position)
                builder.add_edge(self.annotated.sites[at].inputs[position].site, at, matrix)
        return builder.build()

    def op_s(self, at: int, choice: int) -> float:
        """The second run of one op."""
        return float(self.op_times_s(at)[choice])

    @property
    def _runs(self) -> int:
        return self.pricer.setting.microbatches

    def op_times_s(self, at: int) -> FloatArray:
        """Seconds of each candidate: [k]."""
        site = self.annotated.sites[at]
        key = id(site.candidates), site.call and site.call.op
        if key not in self._ops:
            times = [self.pricer.op_times_s(site, each)[0] for each in site.candidates]
            self._ops[key] = self._runs * np.array(times)
        return self._ops[key]

    def _edge(self, at: int, position: int) -> FloatArray:
        """Seconds of boxing what a site reads, forward only: [k source, k reader]."""
        sites = self.annotated.sites
        source = sites[at].inputs[position]
        one, other = sites[source.site].candidates, sites[at].candidates
        meta = sites[source.site].outputs[source.output]
        key = id(one), source.output, id(other), position, meta
        if key not in self._boxing:
            rows, row_of = distinct([each.outputs[source.output] for each in one])
            columns, column_of = distinct([each.inputs[position] for each in other])
            spent = [[self._forward_s(row, column, meta) for column in columns] for row in rows]
            self._boxing[key] = self._runs * np.array(spent)[np.ix_(row_of, column_of)]
        return self._boxing[key]

    def _gathering(self, at: int, position: int) -> FloatArray:
        """Seconds of gathering a parameter for a second run alone: [k source, k reader].

        One that is kept is gathered for backward anyway, which then has what the second run has.
        """
        sites = self.annotated.sites
        source, reader = sites[at].inputs[position], sites[at]
        one, other = sites[source.site].candidates, reader.candidates
        meta = sites[source.site].outputs[source.output]
        key = "gathering", id(one), id(other), position, meta, reader.kept
        if key not in self._boxing:
            spent = np.zeros((len(one), len(other)))
            for row, given in enumerate(one):
                if given.policy == "microbatch":
                    forward_s, _ = self.pricer.conversion_times_s(
                        given.carried, given.outputs[0], meta
                    )
                    for column, read in enumerate(other):
                        if read.inputs[position] == given.outputs[0]:
                            anyway = self.pricer.gathers(given, reader, read, position) - 1
                            spent[row, column] = self._runs * (1 - anyway) * forward_s
            self._boxing[key] = spent
        return self._boxing[key]

    def _forward_s(self, before: Layout, after: Layout, meta: TensorMeta) -> float:
        """Of one conversion, by the path that is cheapest with its backward; 0 for one there is
        none of, which is forbidden elsewhere."""
        if before == after:
            return 0.0
        key = before, after, meta.shape, meta.itemsize, meta.requires_grad
        if key not in self._conversions:
            self._conversions[key] = forward_s(self.pricer, before, after, meta)
        return self._conversions[key]


def reads_again(annotated: Annotated, block: Block) -> Iterator[Read]:
    """What a block's second run reads of the body: what is boxed for it a second time."""
    for at in sorted({*block.again, *block.reading}):
        for position, source in enumerate(annotated.sites[at].inputs):
            if not annotated.sites[source.site].parameter_only:
                yield at, position


def gathers_again(annotated: Annotated, block: Block) -> Iterator[Read]:
    """Parameters that a block's second run may gather in the body."""
    for at in sorted({*block.again, *block.reading}):
        for position, source in enumerate(annotated.sites[at].inputs):
            origin = annotated.sites[source.site]
            if origin.parameter_only and any(e.policy != "step" for e in origin.candidates):
                yield at, position


def forward_s(pricer: Pricer, before: Layout, after: Layout, meta: TensorMeta) -> float:
    """Seconds of the forward half of one conversion in the body; 0 where nothing leads there."""
    router = pricer.routers.body
    cost = router.costs([before], [after], meta.shape, meta.itemsize, meta.requires_grad)
    if not np.isfinite(cost[0, 0]):
        return 0.0
    return pricer.conversion_times_s(before, after, meta)[0]
