"""A chain of pieces and the pipeline that runs it: what is asked of a cut into stages, as arrays.

Pieces (blocks, and the stray parts between them) stand in execution order. A cut gives stage s the
pieces first[s] .. first[s + 1] - 1, at least one; stages of one group run on the same devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from autoplan.errors import InfeasibleError
from autoplan.solver.problem import FloatArray, read_only

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.intp]

# Sums of bytes that are no integers carry rounding errors below this part of the limit.
_ROUNDING = 1e-12


def _nothing() -> FloatArray:
    return read_only(0.0)


def _unlimited() -> FloatArray:
    return read_only(np.inf)


@dataclass(frozen=True, eq=False)
class Chain:
    """n pieces in execution order; every field but `cut_s`, `cut_bytes` and `shared` is per piece.

    `time_s`: seconds of one microbatch, forward and backward. `recompute_s`: seconds more if the
    piece is recomputed, np.inf if it cannot be. `once_s`: seconds once per step, such as gathering
    parameters, reducing gradients, the optimizer. `resident_bytes`: parameters, gradients,
    optimizer state. `kept_bytes`, `kept_if_recomputed_bytes`: activations of each microbatch in
    flight. `transient_bytes`: alive only while the piece runs; `working_bytes`: more of them if it
    is recomputed.

    `cut_s[i]`, n + 1 long: seconds per microbatch, forward and backward, of the transfer before
    piece i, paid by both stages it joins (by none if one group runs both); 0 at the ends.
    `cut_bytes[i]`: what a microbatch in flight keeps of it in the stage that begins there.
    `allowed`: bool[n, S], where hints let a piece be, or bool[n, 1]. `shared`: (pieces, bytes) of
    parameters that several pieces use, resident once in each stage that holds any of them, and not
    in `resident_bytes`. A scalar stands for every piece. Raises ValueError for other shapes, NaN
    or negative numbers, or infinite ones where a piece's own number is asked.
    """

    time_s: FloatArray
    recompute_s: FloatArray = field(default_factory=_unlimited)
    once_s: FloatArray = field(default_factory=_nothing)
    resident_bytes: FloatArray = field(default_factory=_nothing)
    kept_bytes: FloatArray = field(default_factory=_nothing)
    kept_if_recomputed_bytes: FloatArray = field(default_factory=_nothing)
    transient_bytes: FloatArray = field(default_factory=_nothing)
    working_bytes: FloatArray = field(default_factory=_nothing)
    cut_s: FloatArray = field(default_factory=_nothing)
    cut_bytes: FloatArray = field(default_factory=_nothing)
    allowed: BoolArray = field(default_factory=lambda: np.ones((1, 1), dtype=np.bool_))
    shared: tuple[tuple[tuple[int, ...], float], ...] = ()

    def __post_init__(self) -> None:
        n = np.asarray(self.time_s).size
        for name in self.__dataclass_fields__:
            if name in ("allowed", "shared"):
                continue
            given = read_only(getattr(self, name))
            shape = (n + 1,) if name.startswith("cut_") else (n,)
            if given.ndim and given.shape != shape:
                raise ValueError(f"{name} has shape {given.shape}; expected {shape}")
            most = np.inf if name == "recompute_s" else np.finfo(np.float64).max
            if not ((given >= 0.0) & (given <= most)).all():
                raise ValueError(f"{name} holds negative numbers, NaN or infinity")
            if name.startswith("cut_") and not given.ndim:
                given = np.r_[0.0, np.full(max(n - 1, 0), given), 0.0][: n + 1]
            object.__setattr__(self, name, read_only(np.broadcast_to(given, shape)))
        if n == 0 or self.time_s.ndim != 1:
            raise ValueError("a chain has at least one piece")
        if self.cut_s[0] or self.cut_s[n] or self.cut_bytes[0] or self.cut_bytes[n]:
            raise ValueError("nothing is transferred at the ends of a chain; expected 0 there")
        allowed = np.asarray(self.allowed, dtype=np.bool_)
        if allowed.ndim != 2 or allowed.shape[0] not in (1, n):
            raise ValueError(f"allowed has shape {allowed.shape}; expected ({n}, stages)")
        object.__setattr__(self, "allowed", np.broadcast_to(allowed, (n, allowed.shape[1])))
        for pieces, size in self.shared:
            if not all(0 <= k < n for k in pieces) or not 0.0 <= size < np.inf:
                raise ValueError(f"shared ({pieces}, {size}) does not fit a chain of {n} pieces")

    @property
    def num_pieces(self) -> int:
        """n."""
        return int(self.time_s.size)

    @property
    def saved_bytes(self) -> FloatArray:
        """What recomputing a piece saves of a microbatch in flight; 0 if it cannot be, or loses."""
        saved = np.maximum(self.kept_bytes - self.kept_if_recomputed_bytes, 0.0)
        return np.where(np.isfinite(self.recompute_s), saved, 0.0)

    def most_bytes(self, stages: int, in_flight: float) -> float:
        """What no group holds more of, however the chain is cut and whatever is recomputed.

        With at most so many microbatches in flight, and `stages` in all.
        """
        kept = np.maximum(self.kept_bytes, self.kept_if_recomputed_bytes).sum()
        shared = stages * sum(size for _, size in self.shared)
        running = (self.transient_bytes + self.working_bytes).max()
        held = in_flight * (kept + self.cut_bytes.sum())
        return float(self.resident_bytes.sum() + shared + held + running)

    def with_recomputed(self, recomputed: npt.ArrayLike) -> Chain:
        """The chain in which exactly the pieces of `recomputed`, bool[n], are recomputed.

        Raises ValueError for another shape, or for a piece that cannot be.
        """
        mask = np.asarray(recomputed, dtype=np.bool_)
        if mask.shape != self.time_s.shape:
            raise ValueError(f"recomputed has shape {mask.shape}; expected {self.time_s.shape}")
        impossible = np.flatnonzero(mask & np.isinf(self.recompute_s)).tolist()
        if impossible:
            raise ValueError(f"pieces {impossible} cannot be recomputed")
        kept = np.where(mask, self.kept_if_recomputed_bytes, self.kept_bytes)
        return replace(
            self,
            time_s=self.time_s + np.where(mask, self.recompute_s, 0.0),
            recompute_s=read_only(np.inf),
            kept_bytes=kept,
            kept_if_recomputed_bytes=kept,
            transient_bytes=self.transient_bytes + np.where(mask, self.working_bytes, 0.0),
        )


@dataclass(frozen=True, eq=False)
class Pipeline:
    """S stages on groups of devices: stage s runs on `group[s]`.

    `group`: int[S], the numbers 0 .. G-1 (plain: 0, 1, ...; interleaved: s mod G; V: mirrored).
    `in_flight`: [S], microbatches that a stage keeps at its worst moment. `microbatches` per step.
    `memory_bytes`: limit of each group, [G] or a number. Raises ValueError for anything else.
    """

    group: tuple[int, ...]
    in_flight: FloatArray
    microbatches: int
    memory_bytes: FloatArray = field(default_factory=_unlimited)

    def __post_init__(self) -> None:
        group = tuple(int(g) for g in self.group)
        object.__setattr__(self, "group", group)
        if not group or set(group) != set(range(len(set(group)))):
            raise ValueError(f"groups {group} are not numbered 0, 1, ... without holes")
        for name, size in (("in_flight", len(group)), ("memory_bytes", len(set(group)))):
            given = np.asarray(getattr(self, name), dtype=np.float64)
            if given.ndim and given.shape != (size,):
                raise ValueError(f"{name} has shape {given.shape}; expected ({size},)")
            object.__setattr__(self, name, read_only(np.broadcast_to(given, (size,))))
        if not ((self.in_flight >= 1.0) & np.isfinite(self.in_flight)).all():
            raise ValueError("in_flight must be at least 1 microbatch per stage")
        if self.microbatches < 1 or not (self.memory_bytes > 0.0).all():
            raise ValueError("expected at least 1 microbatch, and limits above 0 bytes")

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.group)

    @property
    def num_groups(self) -> int:
        """G."""
        return len(set(self.group))

    @property
    def most_bytes(self) -> FloatArray:
        """The limits [G], widened by the rounding of a sum."""
        return self.memory_bytes * (1.0 + _ROUNDING)

    def stages_of(self, group: int) -> tuple[int, ...]:
        """The stages of `group`, in order."""
        return tuple(s for s, g in enumerate(self.group) if g == group)

    def pays_cut(self, stage: int) -> bool:
        """Whether the cut before `stage` is a transfer: from another group."""
        return 0 < stage < self.num_stages and self.group[stage - 1] != self.group[stage]


class TooManyStagesError(InfeasibleError):
    """More stages than pieces."""

    def __init__(self, num_pieces: int, num_stages: int) -> None:
        super().__init__(
            f"{num_stages} stages were asked for, but there are only {num_pieces} pieces, and each "
            f"stage needs one; ask for at most {num_pieces} stages"
        )
        self.num_pieces, self.num_stages = num_pieces, num_stages


class StageHintError(InfeasibleError):
    """Hints that no cut satisfies: `pieces[i]` may only be on `stages[i]`, and all are needed."""

    def __init__(
        self, pieces: tuple[int, ...], stages: tuple[tuple[int, ...], ...], num_stages: int
    ) -> None:
        pins = [f"piece {k} on {_stages(on)}" for k, on in zip(pieces, stages, strict=True)]
        super().__init__(
            f"the hints put {', '.join(pins)}, which no cut into {num_stages} stages does: stages "
            "follow each other in the order of the pieces, and each has one; drop or change one"
        )
        self.pieces, self.stages, self.num_stages = pieces, stages, num_stages


class StageMemoryError(InfeasibleError):
    """No cut fits into memory; the one found to exceed it least needs `needed_bytes` on `group`.

    `proven`: whether no cut at all exceeds the limits less.
    """

    def __init__(self, needed_bytes: float, limit_bytes: float, group: int, proven: bool) -> None:
        super().__init__(
            f"no cut into stages fits into {limit_bytes:.6g} bytes: the one that exceeds "
            f"{'them' if proven else 'them, of those tried,'} least needs {needed_bytes:.6g} bytes "
            f"on the devices of group {group}; raise the limit, use more devices, or fewer "
            "microbatches in flight"
        )
        self.needed_bytes, self.limit_bytes = needed_bytes, limit_bytes
        self.group, self.proven = group, proven


def _stages(stages: Sequence[int]) -> str:
    if len(stages) == 1:
        return f"stage {stages[0]}"
    return f"stages {', '.join(map(str, stages))}" if stages else "no stage"


def check_cuttable(chain: Chain, pipeline: Pipeline) -> None:
    """Whether any cut at all is allowed, of memory apart.

    Raises ValueError if the arrays are of other numbers of stages, TooManyStagesError,
    or StageHintError with an irreducible set of pieces.
    """
    n, stages = chain.num_pieces, pipeline.num_stages
    if chain.allowed.shape[1] not in (1, stages):
        raise ValueError(f"allowed has {chain.allowed.shape[1]} stages; the pipeline has {stages}")
    if stages > n:
        raise TooManyStagesError(n, stages)
    allowed = np.broadcast_to(chain.allowed, (n, stages)).copy()
    if _reaches_the_end(allowed):
        return
    hints = allowed.copy()
    for k in np.flatnonzero(~allowed.all(axis=1)):
        allowed[k] = True
        if _reaches_the_end(allowed):
            allowed[k] = hints[k]
    clash = np.flatnonzero(~allowed.all(axis=1)).tolist()
    on = tuple(tuple(np.flatnonzero(hints[k]).tolist()) for k in clash)
    raise StageHintError(tuple(clash), on, stages)


def _reaches_the_end(allowed: BoolArray) -> bool:
    """Whether piece after piece can stay on its stage or go on to the next, to the last."""
    here = np.zeros(allowed.shape[1], dtype=np.bool_)
    here[0] = True
    for k, row in enumerate(allowed):
        if k:
            here[1:] |= here[:-1]
        here &= row
    return bool(here[-1])
