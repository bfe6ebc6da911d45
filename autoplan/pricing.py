"""Pricing: what each candidate of a site costs in seconds and keeps alive in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.boxing import COLLECTIVES, Router
from autoplan.buckets import Routers
from autoplan.cost_models import CostModel, ParameterBytes, Work
from autoplan.layouts import B, Layout, local_shape
from autoplan.mesh import Mesh
from autoplan.sites import Annotated, Candidate, Site
from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import InnerCollective, OpCall, Rule, TensorMeta

FloatArray = NDArray[np.float64]

_OPTIMIZER_PASSES = {"adamw": 7.0, "adam": 7.0, "sgd": 3.0, "sgd_momentum": 5.0, "momentum": 5.0}
"""Times that a step reads or writes one parameter's bytes: itself, gradient and states."""


@dataclass(frozen=True)
class Setting:
    """How the planned program will be used; it decides what is paid how often."""

    training: bool = True
    optimizer: str = "adamw"
    microbatches: int = 1


def whole_nanoseconds(time_s: float) -> float:
    """`time_s` rounded up to whole nanoseconds.

    No cost model knows less than a nanosecond, and an ILP whose costs span twelve orders of
    magnitude is numerically hard; what costs anything costs at least one.
    """
    return math.ceil(time_s * 1e9) / 1e9


def dtype_name(meta: TensorMeta) -> str:
    return str(meta.dtype).removeprefix("torch.")


class Pricer:
    """Prices of one mesh under one cost model and setting, memoised."""

    def __init__(self, mesh: Mesh, cost_model: CostModel, setting: Setting) -> None:
        self.mesh = mesh
        self.cost_model = cost_model
        self.setting = setting
        self.routers = Routers.of(mesh, self._step_price, whole_nanoseconds)
        self._site_costs: dict[Any, tuple[FloatArray, FloatArray]] = {}
        self._edges: dict[Any, FloatArray] = {}

    def _step_price(self, action: str, axis: str, size_bytes: int) -> float:
        if action in COLLECTIVES:
            return self.cost_model.collective_time_s(action, float(size_bytes), axis)
        if action in ("zero_pad", "keep_one"):
            work = Work("memory", 0.0, float(size_bytes), "float32")
            return self.cost_model.op_time_s(work)
        return 0.0

    def runs(self, site: Site) -> int:
        """How often a step runs the site: once in the prologue, once per microbatch in the body."""
        return 1 if site.parameter_only else self.setting.microbatches

    # -- local work -------------------------------------------------------------------------

    def op_times_s(self, site: Site, candidate: Candidate) -> tuple[float, float]:
        """Seconds of the local op, forward and backward, inner collectives included."""
        call = site.call
        if call is None:
            return 0.0, 0.0
        inner = inner_collectives(site, candidate, self.mesh)
        forward = sum(self._inner_time_s(each) for each in inner if not each.backward)
        backward = sum(self._inner_time_s(each) for each in inner if each.backward)
        work, grad_work = local_work(site, candidate, self.mesh)
        forward += self.cost_model.op_time_s(work)
        if grad_work is not None:
            backward += self.cost_model.op_time_s(grad_work)
        return whole_nanoseconds(forward), whole_nanoseconds(backward)

    def _inner_time_s(self, each: InnerCollective) -> float:
        return self.cost_model.collective_time_s(each.kind, float(each.size_bytes), each.axis)

    def resident(self, meta: TensorMeta, storage: Layout) -> ParameterBytes:
        """Bytes that one parameter keeps alive on the rank with the largest shard."""
        numel = math.prod(local_shape(meta.shape, storage, self.mesh))
        return self.cost_model.resident_bytes(
            numel, dtype_name(meta), self.setting.optimizer, trained=meta.requires_grad
        )

    def optimizer_time_s(self, meta: TensorMeta, storage: Layout) -> float:
        """Seconds of the optimizer's pass over one parameter's shard (fused: no launch counted)."""
        if not meta.requires_grad or not self.setting.training:
            return 0.0
        passes = _OPTIMIZER_PASSES.get(self.setting.optimizer, 0.0)
        size = passes * meta.itemsize * math.prod(local_shape(meta.shape, storage, self.mesh))
        empty = self.cost_model.op_time_s(Work("memory", 0.0, 0.0, dtype_name(meta)))
        busy = self.cost_model.op_time_s(Work("memory", 0.0, size, dtype_name(meta)))
        return whole_nanoseconds(busy - empty)

    # -- vectors and matrices ---------------------------------------------------------------

    def vectors(self, site: Site, saved: Sequence[bool]) -> tuple[FloatArray, FloatArray]:
        """Cost [k] in seconds and memory [k] in bytes of a site's candidates.

        `saved`: which inputs (then, last, the output) this site keeps for backward.
        """
        key = (id(site.candidates), site.call and site.call.op, self.runs(site), tuple(saved))
        if key not in self._site_costs:
            if site.kind == "parameter":
                pairs = [self._parameter(site, each) for each in site.candidates]
            else:
                pairs = [self._other(site, each, saved) for each in site.candidates]
            cost, memory = (
                np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True)
            )
            self._site_costs[key] = cost, memory
        return self._site_costs[key]

    def _parameter(self, site: Site, candidate: Candidate) -> tuple[float, float]:
        meta = site.outputs[0]
        storage, use = candidate.storage, candidate.outputs[0]
        assert storage is not None
        cost = self.conversion_s(storage, use, meta) + self.optimizer_time_s(meta, storage)
        memory = float(self.resident(meta, storage).total)
        if use.without_gradient() != storage:
            gathered = self.local_bytes(meta, use)
            memory += gathered * (2 if self.setting.microbatches > 1 and meta.requires_grad else 1)
        return cost, memory

    def _other(
        self, site: Site, candidate: Candidate, saved: Sequence[bool]
    ) -> tuple[float, float]:
        cost = self.runs(site) * sum(self.op_times_s(site, candidate))
        layouts = [*candidate.inputs, *candidate.outputs[:1]]
        metas = [*(site.call.inputs if site.call else site.outputs), *site.outputs[:1]]
        memory = sum(
            self.local_bytes(meta, layout)
            for keep, meta, layout in zip(saved, metas, layouts, strict=False)
            if keep
        )
        return cost, float(memory)

    def local_bytes(self, meta: TensorMeta, layout: Layout) -> int:
        """Bytes of the largest shard."""
        return meta.itemsize * math.prod(local_shape(meta.shape, layout, self.mesh))

    def router(self, source: Site, reader: Site | None) -> Router:
        """Paths between two sites: shared latency where a prologue's value leaves for the body."""
        leaves = source.parameter_only and reader is not None and not reader.parameter_only
        return self.routers.prologue if leaves else self.routers.body

    def conversion_s(self, source: Layout, target: Layout, meta: TensorMeta) -> float:
        """Seconds to box a parameter from its storage to the layout that a step reads it in."""
        costs = self.routers.prologue.costs(
            [source], [target], meta.shape, meta.itemsize, meta.requires_grad
        )
        return float(costs[0, 0])

    def edge(
        self, source: Site, output: int, reader: Site, position: int, meta: TensorMeta
    ) -> FloatArray:
        """Seconds a step spends boxing between every pair of candidates: [k source, k reader]."""
        runs = self.runs(source)
        router = self.router(source, reader)
        ends = (id(source.candidates), output, id(reader.candidates), position)
        key = (ends, meta, runs, id(router))
        if key not in self._edges:
            rows, row_of = _distinct([c.outputs[output] for c in source.candidates])
            columns, column_of = _distinct([c.inputs[position] for c in reader.candidates])
            costs = router.costs(rows, columns, meta.shape, meta.itemsize, meta.requires_grad)
            if source.parameter_only and source.kind != "constant":
                costs = np.where(self._grows(rows, columns, meta), np.inf, costs)
            self._edges[key] = runs * costs[np.ix_(row_of, column_of)]
        return self._edges[key]

    def _grows(
        self, rows: Sequence[Layout], columns: Sequence[Layout], meta: TensorMeta
    ) -> NDArray[np.bool_]:
        """Where a conversion makes the local tensor larger: [row, column].

        What the prologue makes is gathered where it is made, so that its memory is counted there.
        """
        before = np.array([self.local_bytes(meta, layout) for layout in rows])
        after = np.array([self.local_bytes(meta, layout) for layout in columns])
        larger: NDArray[np.bool_] = after[None, :] > before[:, None]
        return larger

    def output_bytes(self, site: Site) -> FloatArray:
        """Bytes of a site's results under each candidate: [k]."""
        return np.array(
            [
                sum(
                    self.local_bytes(meta, layout)
                    for meta, layout in zip(site.outputs, each.outputs, strict=True)
                )
                for each in site.candidates
            ],
            dtype=np.float64,
        )

    def output_vector(self, source: Site, output: int, meta: TensorMeta) -> FloatArray:
        """Seconds to bring each candidate's output to every rank whole: [k]."""
        whole = Layout((B,) * self.mesh.ndim)
        rows = [c.outputs[output] for c in source.candidates]
        costs = self.routers.body.costs(
            rows, [whole], meta.shape, meta.itemsize, meta.requires_grad
        )
        return self.runs(source) * costs[:, 0]


def _distinct(layouts: Sequence[Layout]) -> tuple[list[Layout], list[int]]:
    unique = list(dict.fromkeys(layouts))
    index = {layout: i for i, layout in enumerate(unique)}
    return unique, [index[layout] for layout in layouts]


def local_context(
    site: Site, candidate: Candidate, mesh: Mesh, coordinates: tuple[int, ...], **more: Any
) -> LocalContext:
    """What the local program of `site` knows on the rank at `coordinates`."""
    assert site.call is not None
    split: dict[str, tuple[str, ...]] = {}
    for axis, label in zip(mesh.axes, candidate.labels, strict=True):
        if site.bound is not None and label in site.bound.sizes:
            split[label] = (*split.get(label, ()), axis)
    return LocalContext(
        mesh,
        coordinates,
        site.call,
        site.rule,
        more.pop("target", None),
        split,
        candidate.inputs,
        candidate.outputs,
        **more,
    )


def inner_collectives(site: Site, candidate: Candidate, mesh: Mesh) -> tuple[InnerCollective, ...]:
    """Collectives inside the local program, sized for the largest shard."""
    if site.rule is None or site.rule.inner is None or site.call is None:
        return ()
    context = local_context(site, candidate, mesh, (0,) * mesh.ndim)
    return tuple(site.rule.inner(site.call, context))


def local_work(site: Site, candidate: Candidate, mesh: Mesh) -> tuple[Work, Work | None]:
    """Work of the largest shard, forward, and backward where a gradient flows."""
    call, rule = site.call, site.rule
    assert call is not None
    kind = rule.kind if rule is not None else "memory"
    dtype = dtype_name(call.inputs[0] if call.inputs else call.outputs[0])
    share = _share(site, candidate, mesh)
    flops = share * (rule.total_flops(call) if rule is not None else float(call.outputs[0].numel))
    moved = float(
        _bytes(call.inputs, candidate.inputs, mesh) + _bytes(call.outputs, candidate.outputs, mesh)
    )
    if rule is not None and rule.kind != "free" and call.op == "aten.embedding.default":
        moved = 2.0 * _bytes(call.outputs, candidate.outputs, mesh)
    forward = Work(kind, flops, moved, dtype)  # type: ignore[arg-type]
    if not any(meta.requires_grad for meta in call.outputs):
        return forward, None
    factor = _backward_factor(call, rule, kind)
    return forward, Work(kind, factor * flops, max(factor, 1.0) * moved, dtype)  # type: ignore[arg-type]


def _backward_factor(call: OpCall, rule: Rule | None, kind: str) -> float:
    """Backward over forward: one product per factor that needs a gradient, of which there are two,
    however many tensors they are (the weights of a recurrent network); 5/2 for attention, which
    computes its scores again (Dao 2023, section 3.1)."""
    if kind == "matmul" and rule is not None:
        addends = rule.bound(call).addends
        needed = sum(m.requires_grad for i, m in enumerate(call.inputs) if i not in addends)
        return float(min(needed, 2))
    return 2.5 if kind == "attention" else 1.0


def _share(site: Site, candidate: Candidate, mesh: Mesh) -> float:
    """The largest rank's part of the work: the product over split indices of its part of each."""
    share = 1.0
    if site.bound is None:
        return share
    parts: dict[str, list[int]] = {}
    for label, size in zip(candidate.labels, mesh.sizes, strict=True):
        if label in site.bound.sizes:
            parts.setdefault(label, []).append(size)
    for index, counts in parts.items():
        whole = rows = site.bound.sizes[index]
        for count in counts:
            rows = -(-rows // count)
        share *= rows / whole
    return share


def _bytes(metas: Sequence[TensorMeta], layouts: Sequence[Layout], mesh: Mesh) -> int:
    return sum(
        meta.itemsize * math.prod(local_shape(meta.shape, layout, mesh))
        for meta, layout in zip(metas, layouts, strict=True)
    )


def saved_tensors(annotated: Annotated) -> list[list[bool]]:
    """Per site, which inputs (then the output) it is charged for keeping until backward.

    A tensor that several readers keep is charged once, to its boxing site. Parameters are charged
    where they are stored and gathered.
    """
    sites = annotated.sites
    charged = [[False] * (len(site.inputs) + 1) for site in sites]
    for at, site in enumerate(sites):
        if site.call is None or not any(meta.requires_grad for meta in site.outputs):
            continue
        kept = (
            site.rule.saved(site.call) if site.rule is not None else tuple(range(len(site.inputs)))
        )
        for each in kept:
            if each == "output":
                charged[at][-1] = True
                continue
            assert isinstance(each, int)
            source = sites[site.inputs[each].site]
            if source.parameter_only:
                continue
            if source.kind == "box":
                charged[site.inputs[each].site][0] = True
            else:
                charged[at][each] = True
    return charged
