"""Discovery: the rule of an op that has none, found by running it on parts of its example.

What `autoplan.parts` finds is written in index notation and proven like any rule; what cannot be
proven is dropped.
"""

from __future__ import annotations

import itertools
import operator
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree  # public use in torch.export's own docs

from autoplan.errors import RuleError
from autoplan.layouts import Split
from autoplan.mesh import Mesh
from autoplan.parts import (
    CutIndex,
    check_example,
    find_carriers,
    find_indices,
    holds_without_rows,
    passes,
    still_holds,
    with_other_sizes,
)
from autoplan.proof import Experiment, Proof, prove_on
from autoplan.registry import ExampleCall, example_call, find_op, observe_call
from autoplan.sites import describe
from autoplan.strategies.rule import OpCall, Rule

MESHES = (Mesh.of(d=2), Mesh.of(d=4), Mesh.of(a=2, b=2))
"""Where a found rule is proven; the example and one of other sizes are cut evenly and unevenly."""


@dataclass(frozen=True)
class Discovered:
    """The rule that an op's example shows.

    notation: how the example's tensors are split, as `register_rule` takes it; dimensions in
        brackets are whole on every rank.
    sums: indices absent from the outputs, which are then addends (P).
    partial: sets of inputs through which P passes together.
    rule: ready for `register_rule`. It holds for calls like the example: the same literal arguments
        and numbers of dimensions, and size one where the example has it; other calls have no rule.
    proofs: of every candidate of the rule, on the example and on one of other sizes.
    dropped: what seemed to hold on parts but was not proven, and why.
    """

    op: str
    notation: str
    sums: tuple[str, ...]
    partial: tuple[frozenset[int], ...]
    rule: Rule
    proofs: tuple[Proof, ...]
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        carriers = (" with ".join(map(str, sorted(each))) for each in self.partial)
        facts = [f'{self.op}: "{self.notation}"']
        facts += [f"sums over {', '.join(self.sums)}"] if self.sums else []
        facts += [f"P passes through input {', or '.join(carriers)}"] if self.partial else []
        if isinstance(self.rule.needs_rows, frozenset) and self.rule.needs_rows:
            facts.append(f"needs rows of {', '.join(sorted(self.rule.needs_rows))}")
        facts.append(f"{len(self.proofs)} candidates proven")
        return "; ".join([*facts, *(f"not proven: {each}" for each in self.dropped)])


def discover_rule(op: Any, *args: Any, **kwargs: Any) -> Discovered:
    """Find how `op` may be split, by trying, from one call of it.

        found = autoplan.discover_rule(torch.ops.mylib.project.default, x, weight, bias)
        print(found)        # mylib.project.default: "a b c, d c, +d -> a b d"; sums over c; ...
        autoplan.register_rule(torch.ops.mylib.project.default, found.rule)

    op: as for `register_rule`. args, kwargs: an example of random numbers, in which dimensions have
    sizes of four or more (those of size one are never split); it runs in float64, and no gradient
    flows to an `nn.Buffer`. What no number of the example shows is not known: let some be ignored,
    masked or out of limits as they would be in use. Only the op itself on shards is tried: a split
    that needs a program of its own, such as a softmax along the split dimension, is not found. Some
    trials have shapes that do not fit together; a kernel that reads on regardless may crash.

    Raises RuleError where the op cannot be run, where it gives another result each time, or where a
    tensor of equal numbers tells nothing apart.
    """
    call = example_call(find_op(op), (*args, kwargs))
    try:
        check_example(call)
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(f"{call.op} cannot be run on its example in float64: {error}") from error
    return _proven(draft_rule(call))


# -- what is found, as a rule ---------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """What holds on parts of the calls: the example, and one of other sizes."""

    calls: tuple[ExampleCall, ...]
    indices: tuple[CutIndex, ...]
    partial: tuple[frozenset[int], ...]
    needs_rows: frozenset[CutIndex] = frozenset()

    @property
    def addends(self) -> frozenset[int]:
        """Inputs that some index needs as addends."""
        return frozenset().union(*(each.addends for each in self.indices))

    @property
    def names(self) -> dict[CutIndex, str]:
        """A letter for each index, in order of first appearance."""
        return dict(zip(self.indices, _letters(), strict=False))

    def notation(self, form: OpCall) -> str:
        """Terms of the call's tensors: letters as found, brackets around what must be whole."""
        names = self.names
        others = itertools.islice(_letters(), len(names), None)
        inputs = [
            [
                _dim(size, [n for i, n in names.items() if i.dims[at] == dim], others)
                for dim, size in enumerate(shape)
            ]
            for at, shape in enumerate(form.input_shapes)
        ]
        outputs = [
            [
                _dim(size, [n for i, n in names.items() if i.outputs[at] == Split(dim)], others)
                for dim, size in enumerate(shape)
            ]
            for at, shape in enumerate(form.output_shapes)
        ]
        marks = ["+" if at in self.addends else "" for at in range(len(inputs))]
        left = ", ".join(mark + " ".join(dims) for mark, dims in zip(marks, inputs, strict=True))
        return f"{left} -> {', '.join(map(' '.join, outputs))}"

    def rule(self, form: OpCall) -> Rule:
        """The rule of calls like `form`."""
        op, notation = self.calls[0].op, self.notation(form)
        wanted, names = _form(op, form), self.names

        def fits(call: OpCall) -> bool:
            return bool(_form(op, call) == wanted)

        contracts = any(i.sums and i.dims.count(None) < len(i.dims) - 1 for i in self.indices)
        return Rule(
            lambda call: notation if fits(call) else None,
            kind="matmul" if contracts and "[" not in notation else "memory",
            partial=lambda call: self.partial if fits(call) else (),
            sums=any(index.sums for index in self.indices),
            saves=_saved(self.calls[0]),
            needs_rows=frozenset(names[index] for index in self.needs_rows & names.keys()),
        )


def draft_rule(call: ExampleCall) -> Draft:
    """What holds on parts of the example and of one with other sizes; nothing is proven."""
    indices = find_indices(call)
    calls = (call, with_other_sizes(call, indices))
    kept = tuple(i for i in indices if all(still_holds(each, i) for each in calls))
    partial = [c for c in find_carriers(call) if all(passes(each, c) for each in calls)]
    draft = Draft(calls, kept, ())
    return replace(
        draft,
        partial=tuple(dict.fromkeys(c - draft.addends for c in partial)),
        needs_rows=frozenset(i for i in kept if not holds_without_rows(call, i)),
    )


def _letters() -> Iterator[str]:
    yield from string.ascii_lowercase
    yield from (f"d{number}" for number in itertools.count())


def _dim(size: int, names: Sequence[str], others: Iterator[str]) -> str:
    if size == 1:
        return "1"
    return names[0] if names else f"[{next(others)}]"


def _form(op: Any, call: OpCall) -> Any:
    """What a found rule depends on: literal arguments, and which dimensions there are."""
    literals = {
        each.name: call.argument(position, each.name, each.default_value)
        for position, each in enumerate(op._schema.arguments)
    }
    shapes = (*call.input_shapes, *call.output_shapes)
    return literals, [[size == 1 for size in shape] for shape in shapes]


def _saved(call: ExampleCall) -> tuple[int | str, ...]:
    """The tensors that autograd keeps for backward."""
    leaves = [
        x.detach().clone().requires_grad_(x.is_floating_point() and not isinstance(x, nn.Buffer))
        for x in call.tensors
    ]
    kept: set[int] = set()

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.add(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = [x for x in pytree.tree_leaves(call(*leaves)) if isinstance(x, torch.Tensor)]
    inputs = [number for number, x in enumerate(leaves) if x.numel() and x.data_ptr() in kept]
    views = {x.data_ptr() for x in leaves}
    result = any(x.data_ptr() in kept - views for x in outputs)
    return (*inputs, "output") if result else tuple(inputs)


# -- proof ----------------------------------------------------------------------------------


def _proven(draft: Draft) -> Discovered:
    """The draft less what is wrong; RuleError where even the whole op is."""
    experiments = [observe_call(call) for call in draft.calls]
    form = form_of(experiments[0])
    dropped: list[str] = []
    while True:
        rule = draft.rule(form)
        proofs, wrong = _prove(str(draft.calls[0].op), experiments, rule)
        if wrong is None:
            break
        draft, lost = _without(draft, wrong)
        if lost:
            dropped.append(str(wrong))
    names = draft.names
    return Discovered(
        str(draft.calls[0].op),
        draft.notation(form),
        tuple(names[index] for index in draft.indices if index.sums),
        tuple(dict.fromkeys(carriers | draft.addends for carriers in draft.partial)),
        rule,
        tuple(proofs),
        tuple(dropped),
    )


def form_of(experiment: Experiment) -> OpCall:
    """The experiment's one op call, as rules see it; RuleError if capture makes it another."""
    calls = [
        describe(node)[0]
        for node in experiment.captured.graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    ]
    if len(calls) != 1:
        names = ", ".join(call.op for call in calls)
        raise RuleError(f"captured graphs show this call as {names or 'nothing'}, not as one op.")
    return calls[0]


def _prove(
    op: str, experiments: Sequence[Experiment], rule: Rule
) -> tuple[list[Proof], Proof | None]:
    """The proofs up to the first mesh where one is wrong, and that one."""
    proofs: list[Proof] = []
    for mesh, experiment in itertools.product(MESHES, experiments):
        found = prove_on(mesh, experiment, {op: rule})
        wrong = [proof for proof in found if not proof.ok]
        if wrong:
            return proofs, min(wrong, key=lambda proof: len(_found_labels(proof)))
        proofs += found
    return proofs, None


def _found_labels(proof: Proof) -> list[str]:
    return [label for label in proof.labels if label not in ("B", "B/P")]


def _without(draft: Draft, wrong: Proof) -> tuple[Draft, bool]:
    """The draft less the last of what the wrong candidate splits, or less its empty shards."""
    labels = _found_labels(wrong)
    if not labels:
        raise RuleError(f"{wrong}. The op is not right even whole on every rank.")
    if labels[-1].startswith("P"):
        number = int(labels[-1][1:] or 0)
        partial = draft.partial[:number] + draft.partial[number + 1 :]
        return replace(draft, partial=partial), True
    index = next(index for index, name in draft.names.items() if name == labels[-1])
    if index not in draft.needs_rows:
        return replace(draft, needs_rows=draft.needs_rows | {index}), False
    return replace(draft, indices=tuple(i for i in draft.indices if i != index)), True
