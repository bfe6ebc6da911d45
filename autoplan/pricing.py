"""Pricing: what each candidate of a site costs in seconds, and what it keeps in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.boxing import COLLECTIVES, Router
from autoplan.buckets import Routers, bucketed
from autoplan.conversions import gathering
from autoplan.cost_models import CostModel, ParameterBytes, Work
from autoplan.layouts import B, Layout, local_shape
from autoplan.mesh import Mesh
from autoplan.sites import Candidate, Site
from autoplan.strategies.local import LocalContext
from autoplan.strategies.rule import InnerCollective, OpCall, OpMemory, Rule, TensorMeta

FloatArray = NDArray[np.float64]

_OPTIMIZER_PASSES = {"adamw": 7.0, "adam": 7.0, "sgd": 3.0, "sgd_momentum": 5.0, "momentum": 5.0}
"""Times that a step reads or writes one parameter's bytes: itself, gradient and states."""


@dataclass(frozen=True)
class Setting:
    """How the planned program will be used; it decides what is paid how often."""

    training: bool = True
    optimizer: str = "adamw"
    microbatches: int = 1
    device_type: str = "cuda"
    in_flight: int = 1
    """Microbatches whose activations a pipeline stage holds at once."""
    in_flight_later: int | None = None
    """The same once parameters have gradients, where that is less."""


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
        self._site_costs: dict[Any, FloatArray] = {}
        self._edges: dict[Any, FloatArray] = {}
        self._gatherings: dict[tuple[Candidate, TensorMeta], tuple[float, float]] = {}
        # What the keys above tell apart by identity: held, so that nothing else takes its place.
        self._known: dict[int, Any] = {}

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

    def costs(self, site: Site) -> FloatArray:
        """Seconds that a step spends on each of a site's candidates by itself: [k]."""
        key = (self._identity(site.candidates), site.call and site.call.op, self.runs(site))
        if key not in self._site_costs:
            parts = self._parameter_s(site) if site.kind == "parameter" else self._op_s(site)
            costs = np.array(parts, dtype=np.float64)
            costs.flags.writeable = False
            self._site_costs[key] = costs
        return self._site_costs[key]

    def _identity(self, candidates: tuple[Candidate, ...]) -> int:
        self._known[id(candidates)] = candidates
        return id(candidates)

    def _parameter_s(self, site: Site) -> list[float]:
        """Boxing from each storage to how the step reads it, and the optimizer's pass."""
        meta = site.outputs[0]
        rows, row_of = distinct(
            [each.storage for each in site.candidates if each.storage is not None]
        )
        columns, column_of = distinct([each.carried for each in site.candidates])
        router = self.routers.prologue
        gathering = router.costs(rows, columns, meta.shape, meta.itemsize, meta.requires_grad)
        stepping = [self.optimizer_time_s(meta, storage) for storage in rows]
        beside = [
            self._beside_s(each, meta) if each.policy == "reduce" else 0.0
            for each in site.candidates
        ]
        return [
            float(gathering[row, column]) + stepping[row] + whole
            for row, column, whole in zip(row_of, column_of, beside, strict=True)
        ]

    def _beside_s(self, candidate: Candidate, meta: TensorMeta) -> float:
        """Gathering once a step, in a bucket, what the body reduces the gradient of."""
        price, total = bucketed(self._step_price), 0.0
        for move in gathering(candidate, meta, self.routers, "").moves:
            size, axis = move.whole_bytes(meta.shape, meta.itemsize, self.mesh), move.axis
            total += whole_nanoseconds(price(move.actions(False)[0], self.mesh.axes[axis], size))
        return total

    def _op_s(self, site: Site) -> list[float]:
        return [self.runs(site) * sum(self.op_times_s(site, each)) for each in site.candidates]

    def local_bytes(self, meta: TensorMeta, layout: Layout) -> int:
        """Bytes of the largest shard."""
        return meta.itemsize * math.prod(local_shape(meta.shape, layout, self.mesh))

    def router(self, source: Site, reader: Site | None) -> Router:
        """Paths between two sites: shared latency where a prologue's value leaves for the body."""
        leaves = source.parameter_only and reader is not None and not reader.parameter_only
        return self.routers.prologue if leaves else self.routers.body

    def edge(
        self, source: Site, output: int, reader: Site, position: int, meta: TensorMeta
    ) -> FloatArray:
        """Seconds a step spends boxing between every pair of candidates: [k source, k reader]."""
        runs = self.runs(source)
        router = self.router(source, reader)
        ends = (
            self._identity(source.candidates),
            output,
            self._identity(reader.candidates),
            position,
        )
        key = (ends, meta, runs, id(router))
        if key not in self._edges:
            rows, row_of = distinct([c.outputs[output] for c in source.candidates])
            columns, column_of = distinct([c.inputs[position] for c in reader.candidates])
            costs = router.costs(rows, columns, meta.shape, meta.itemsize, meta.requires_grad)
            if source.parameter_only and source.kind != "constant":
                costs = np.where(self._grows(rows, columns, meta), np.inf, costs)
            matrix = runs * costs[np.ix_(row_of, column_of)]
            if any(each.policy != "step" for each in (*source.candidates, *reader.candidates)):
                self._price_policies(matrix, source, reader, position, meta)
            self._edges[key] = matrix
            self._edges[key].flags.writeable = False
        return self._edges[key]

    def _price_policies(
        self, matrix: FloatArray, source: Site, reader: Site, position: int, meta: TensorMeta
    ) -> None:
        """Write the rows of what the body gathers: by every reader, and as it reads it.

        A boxing site behind a parameter passes storage and policy on, and nothing else joins them.
        """
        passes_on = reader.kind == "box" and source.kind == "parameter"
        for row, one in enumerate(source.candidates):
            if passes_on:
                for column, other in enumerate(reader.candidates):
                    if one.policy != other.policy or one.policy != "step":
                        alike = (one.policy, one.storage, one.outputs)
                        same = alike == (other.policy, other.storage, other.outputs)
                        matrix[row, column] = 0.0 if same else np.inf
            elif one.policy != "step":
                readers = enumerate(reader.candidates)
                read = [n for n, other in readers if other.inputs[position] == one.outputs[0]]
                matrix[row] = np.inf
                matrix[row, read] = [
                    self.gathering_s(one, reader, reader.candidates[n], position, meta)
                    for n in read
                ]

    def gathering_s(
        self, one: Candidate, reader: Site, other: Candidate, position: int, meta: TensorMeta
    ) -> float:
        """Seconds a step that the body spends on a parameter under a policy, for one reader."""
        key = one, meta
        if key not in self._gatherings:
            self._gatherings[key] = self.conversion_times_s(one.carried, one.outputs[0], meta)
        forward_s, backward_s = self._gatherings[key]
        again = self.gathers(one, reader, other, position)
        return self.setting.microbatches * (again * forward_s + backward_s)

    def gathers(self, one: Candidate, reader: Site, other: Candidate, position: int) -> int:
        """How often a microbatch gathers a parameter for one reader: again where it is kept."""
        if one.policy != "microbatch":
            return 0
        trains = self.setting.training and any(meta.requires_grad for meta in reader.outputs)
        keeps = reader.kept or position in op_memory(reader, other, self.mesh).saves
        return 1 + (trains and keeps)

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

    def conversion_times_s(
        self, source: Layout, target: Layout, meta: TensorMeta
    ) -> tuple[float, float]:
        """Seconds of boxing one tensor in the body, forward and backward."""
        times = [0.0, 0.0]
        moves = self.routers.body.path(
            source, target, meta.shape, meta.itemsize, meta.requires_grad
        )
        for move in moves:
            size, axis = move.whole_bytes(meta.shape, meta.itemsize, self.mesh), move.axis
            for direction, action in enumerate(move.actions(meta.requires_grad)):
                price = self._step_price(action, self.mesh.axes[axis], size)
                times[direction] += whole_nanoseconds(price)
        return times[0], times[1]

    def output_vector(self, source: Site, output: int, meta: TensorMeta) -> FloatArray:
        """Seconds to bring each candidate's output to every rank whole: [k]."""
        whole = Layout((B,) * self.mesh.ndim)
        rows = [c.outputs[output] for c in source.candidates]
        costs = self.routers.body.costs(
            rows, [whole], meta.shape, meta.itemsize, meta.requires_grad
        )
        return self.runs(source) * costs[:, 0]


def distinct(layouts: Sequence[Layout]) -> tuple[list[Layout], list[int]]:
    """The layouts without repetition, and the place of each given one among them."""
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
    inner = None if site.rule is None else site.rule.inner_of(candidate.labels)
    if inner is None or site.call is None:
        return ()
    return tuple(inner(site.call, local_context(site, candidate, mesh, (0,) * mesh.ndim)))


def local_work(site: Site, candidate: Candidate, mesh: Mesh) -> tuple[Work, Work | None]:
    """Work of the largest shard, forward, and backward where a gradient flows."""
    call, rule = site.call, site.rule
    assert call is not None
    kind = rule.kind if rule is not None else "memory"
    dtype = dtype_name(call.inputs[0] if call.inputs else call.outputs[0])
    share = _share(site, candidate, mesh)
    flops = share * (rule.total_flops(call) if rule is not None else float(call.outputs[0].numel))
    moved = float(
        _bytes(call.inputs, candidate.inputs, mesh)
        + _bytes(call.outputs, candidate.outputs, mesh)
        + _streamed_bytes(site, candidate, mesh)
    )
    if rule is not None and rule.kind != "free" and call.op == "aten.embedding.default":
        moved = 2.0 * _bytes(call.outputs, candidate.outputs, mesh)
    forward = Work(kind, flops, moved, dtype)  # type: ignore[arg-type]
    if not any(meta.requires_grad for meta in call.outputs):
        return forward, None
    factor = backward_factor(call, rule, kind)
    return forward, Work(kind, factor * flops, max(factor, 1.0) * moved, dtype)  # type: ignore[arg-type]


def _streamed_bytes(site: Site, candidate: Candidate, mesh: Mesh) -> int:
    """What comes by in blocks is read as well."""
    inner = inner_collectives(site, candidate, mesh)
    return sum(each.size_bytes for each in inner if each.kind == "broadcast" and not each.backward)


def backward_factor(call: OpCall, rule: Rule | None, kind: str) -> float:
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


def op_memory(site: Site, candidate: Candidate, mesh: Mesh) -> OpMemory:
    """What an op keeps for backward, and needs while it runs; without a rule, all that it reads."""
    if site.call is None:
        return OpMemory()
    if site.rule is None:
        return OpMemory(saves=tuple(range(len(site.inputs))))
    return site.rule.memory_of(site.call, local_context(site, candidate, mesh, (0,) * mesh.ndim))
