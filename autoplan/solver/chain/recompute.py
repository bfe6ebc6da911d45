"""Which pieces of a given cut to recompute, and what the cut then costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autoplan.solver.chain.problem import BoolArray, Chain, Pipeline
from autoplan.solver.problem import FloatArray

# States of the knapsack at once; beyond, the least promising are dropped and bound the result.
_MOST_STATES = 10_000
_EXACT = 1e-12


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a cut costs. `fits`: whether every group is within its memory.

    `stage_s`: [S] seconds per microbatch; `load_s`: [G] seconds per step, with what is paid once;
    `memory_bytes`: [G]; `recomputed`: bool[n]. `objective`, seconds of a step, and `bound`: what
    no choice of recomputed pieces for this cut goes below, equal unless a knapsack was cut short.
    If no choice fits, the one with the least memory.
    """

    first: tuple[int, ...]
    recomputed: BoolArray
    stage_s: FloatArray
    load_s: FloatArray
    memory_bytes: FloatArray
    objective: float
    bound: float
    fits: bool


def evaluate(
    chain: Chain,
    pipeline: Pipeline,
    first: Sequence[int],
    recomputed: npt.ArrayLike | None = None,
) -> Evaluation:
    """What the cut `first`, S + 1 positions from 0 to n, costs; hints are not looked at.

    Seconds of a step, as GPipe and 1F1B take them (Zheng et al., "Alpa", 2022, section 5.1;
    Narayanan et al., "PipeDream", 2019): sum_s t_s + (m-1) max_g sum_{s in g} t_s + max_g once_g.
    Recomputes the pieces of `recomputed`, bool[n], or those that fit each group into its memory at
    the least time. Raises ValueError for positions that do not cut the chain into S stages.
    """
    first = tuple(int(i) for i in first)
    n, m = chain.num_pieces, pipeline.microbatches
    if len(first) != pipeline.num_stages + 1 or (first[0], first[-1]) != (0, n):
        raise ValueError(f"{first} does not cut {n} pieces into {pipeline.num_stages} stages")
    if any(i >= j for i, j in pairwise(first)):
        raise ValueError(f"{first} leaves a stage without pieces; expected ascending positions")
    if recomputed is not None:
        chain, forced = chain.with_recomputed(recomputed), np.asarray(recomputed, dtype=np.bool_)
    else:
        forced = np.zeros(n, dtype=np.bool_)

    choice = np.zeros(n, dtype=np.bool_)
    memory = np.zeros(pipeline.num_groups)
    base, slack = np.zeros(pipeline.num_groups), np.zeros(pipeline.num_groups)
    once, extra = np.zeros(pipeline.num_groups), np.zeros(pipeline.num_groups)
    stage_of = np.repeat(np.arange(pipeline.num_stages), np.diff(first))
    saved = chain.saved_bytes * pipeline.in_flight[stage_of]
    peaks = chain.transient_bytes + chain.working_bytes
    for g in range(pipeline.num_groups):
        stages = pipeline.stages_of(g)
        pieces = np.flatnonzero(np.isin(stage_of, stages))
        without = math.fsum(stage_bytes(chain, pipeline, s, first[s], first[s + 1]) for s in stages)
        peak = float(chain.transient_bytes[pieces].max())
        picked = fit(
            chain.recompute_s[pieces],
            saved[pieces],
            peaks[pieces],
            peak,
            without - float(pipeline.most_bytes[g]),
        )
        choice[pieces] = picked.mask
        chosen = pieces[picked.mask]
        top = max(peak, float(peaks[chosen].max(initial=0.0)))
        memory[g] = without - math.fsum(saved[chosen]) + top
        extra[g] = math.fsum(chain.recompute_s[chosen])
        slack[g] = extra[g] - picked.bound
        once[g] = math.fsum(chain.once_s[pieces])

    stage_s = np.array(
        [
            math.fsum(chain.time_s[i:j])
            + math.fsum(chain.recompute_s[i:j][choice[i:j]])
            + (chain.cut_s[i] if pipeline.pays_cut(s) else 0.0)
            + (chain.cut_s[j] if pipeline.pays_cut(s + 1) else 0.0)
            for s, (i, j) in enumerate(pairwise(first))
        ]
    )
    for g in range(pipeline.num_groups):
        base[g] = math.fsum(stage_s[list(pipeline.stages_of(g))])
    return Evaluation(
        first=first,
        recomputed=choice | forced,
        stage_s=stage_s,
        load_s=m * base + once,
        memory_bytes=memory,
        objective=step_s(base, once, m),
        bound=step_s(base - slack, once, m),
        # Once more the rounding: the knapsack has used up the first.
        fits=bool((memory <= pipeline.most_bytes * (1.0 + _EXACT)).all()),
    )


def step_s(seconds: FloatArray, once_s: FloatArray, microbatches: int) -> float:
    """Seconds of a step, from each group's seconds per microbatch and seconds once: [G], [G]."""
    bottleneck = (microbatches - 1) * float(seconds.max())
    return math.fsum(seconds) + bottleneck + float(once_s.max())


def stage_bytes(chain: Chain, pipeline: Pipeline, stage: int, first: int, end: int) -> float:
    """Bytes of pieces first .. end-1 as `stage`, none recomputed, transients apart."""
    shared = (b for pieces, b in chain.shared if any(first <= k < end for k in pieces))
    kept = math.fsum([*chain.kept_bytes[first:end], chain.cut_bytes[first]])
    resident = math.fsum([*chain.resident_bytes[first:end], *shared])
    return resident + float(pipeline.in_flight[stage]) * kept


@dataclass(frozen=True, eq=False)
class Picked:
    """`mask` of the pieces to recompute; none that fits costs less than `bound` seconds."""

    mask: BoolArray
    bound: float


def fit(
    cost_s: FloatArray, saved: FloatArray, peaks: FloatArray, peak: float, over: float
) -> Picked:
    """The cheapest pieces to recompute so that `over` + peak - saved <= 0, in bytes.

    `peaks`: transients of each piece if recomputed; `peak`: the largest if none is. For each peak
    that may be the largest, a knapsack over the pieces that do not exceed it. If nothing fits, the
    pieces that exceed least, and np.inf as bound.
    """
    best, bound = np.zeros(saved.size, dtype=np.bool_), np.inf
    if over + peak <= 0.0:
        return Picked(best, 0.0)
    useful = (saved > 0.0) & np.isfinite(cost_s)
    excess, found = over + peak, np.inf
    for most in np.unique(np.maximum(peaks[useful], peak)).tolist():
        eligible = np.flatnonzero(useful & (peaks <= most))
        need = over + most
        rest = need - math.fsum(saved[eligible])
        if rest > 0.0:
            if found == np.inf and rest < excess:
                excess = rest
                best = np.isin(np.arange(saved.size), eligible)
            continue
        picked = _knapsack(cost_s[eligible], saved[eligible], need)
        cost = math.fsum(cost_s[eligible][picked.mask])
        bound = min(bound, picked.bound)
        if cost < found:
            found = cost
            best = np.isin(np.arange(saved.size), eligible[picked.mask])
    return Picked(best, min(bound, found))


def _knapsack(cost: FloatArray, saved: FloatArray, need: float) -> Picked:
    """The cheapest items that save `need`, which all of them together do.

    Breadth first over items by price, with dominance (Nemhauser & Ullmann 1969) and the bounds of
    the fractional knapsack (Dantzig 1957).
    """
    order = np.argsort(cost / saved, kind="stable")
    cost, saved = cost[order], saved[order]
    cost_to, saved_to = np.r_[0.0, np.cumsum(cost)], np.r_[0.0, np.cumsum(saved)]
    saved_to[-1] = max(saved_to[-1], need)
    masks = np.zeros((1, cost.size), dtype=np.bool_)
    costs, sums = np.zeros(1), np.zeros(1)
    best, best_mask, dropped = np.inf, masks[0], np.inf
    for k in range(cost.size + 1):
        # Each state completed by the cheapest items that follow: whole, and the last in part.
        upto = saved_to[k] + np.maximum(need - sums, 0.0)
        able = upto <= saved_to[-1]
        masks, costs, sums, upto = masks[able], costs[able], sums[able], upto[able]
        if not costs.size:
            break
        ends = np.searchsorted(saved_to, upto)
        ends = np.maximum(ends, k)
        whole = costs + (cost_to[ends] - cost_to[k])
        top = int(whole.argmin())
        if whole[top] < best:
            best, best_mask = float(whole[top]), masks[top].copy()
            best_mask[k : ends[top]] = True
        low = costs + (np.interp(upto, saved_to, cost_to) - cost_to[k])
        live = low < best * (1.0 - _EXACT)
        if live.sum() > _MOST_STATES:
            edge = np.partition(low[live], _MOST_STATES)[_MOST_STATES]
            dropped = min(dropped, float(edge))
            live &= low < edge
        masks, costs, sums = masks[live], costs[live], sums[live]
        if k == cost.size or not costs.size:
            break
        taken = masks.copy()
        taken[:, k] = True
        masks = np.concatenate([masks, taken])
        costs = np.concatenate([costs, costs + cost[k]])
        sums = np.concatenate([sums, sums + saved[k]])
        rank = np.lexsort((-sums, costs))
        highest = np.maximum.accumulate(np.r_[-1.0, sums[rank]])
        rank = rank[sums[rank] > highest[:-1]]
        masks, costs, sums = masks[rank], costs[rank], sums[rank]
    picked = np.zeros(cost.size, dtype=np.bool_)
    picked[order] = best_mask
    return Picked(picked, min(best, dropped))
