"""Chains cut into stages: every answer against every cut and every choice of recomputed pieces."""

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.errors import InfeasibleError
from autoplan.solver.chain import (
    Assignment,
    Chain,
    Pipeline,
    StageHintError,
    StageMemoryError,
    TooManyStagesError,
    assign,
    evaluate,
)
from autoplan.solver.chain import ilp as chain_ilp
from autoplan.solver.chain.recompute import fit


def every_cut(n: int, stages: int) -> Iterator[tuple[int, ...]]:
    return ((0, *c, n) for c in itertools.combinations(range(1, n), stages - 1))


def plain_cost(
    chain: Chain, pipeline: Pipeline, first: tuple[int, ...], mask: tuple[bool, ...]
) -> tuple[float, list[float]]:
    """Seconds of a step and bytes of each group, piece by piece as the definitions say."""
    groups, m = pipeline.num_groups, pipeline.microbatches
    seconds, once, held, peak = ([0.0] * groups for _ in range(4))
    for s, g in enumerate(pipeline.group):
        i, j = first[s], first[s + 1]
        for k in range(i, j):
            again = bool(mask[k])
            seconds[g] += float(chain.time_s[k]) + (float(chain.recompute_s[k]) if again else 0.0)
            once[g] += float(chain.once_s[k])
            kept = chain.kept_if_recomputed_bytes[k] if again else chain.kept_bytes[k]
            held[g] += float(chain.resident_bytes[k] + pipeline.in_flight[s] * kept)
            work = float(chain.working_bytes[k]) if again else 0.0
            peak[g] = max(peak[g], float(chain.transient_bytes[k]) + work)
        held[g] += float(pipeline.in_flight[s] * chain.cut_bytes[i])
        held[g] += sum(size for pieces, size in chain.shared if set(pieces) & set(range(i, j)))
        if s > 0 and pipeline.group[s - 1] != g:
            seconds[g] += float(chain.cut_s[i])
        if s + 1 < pipeline.num_stages and pipeline.group[s + 1] != g:
            seconds[g] += float(chain.cut_s[j])
    step = sum(seconds) + (m - 1) * max(seconds) + max(once)
    return step, [a + b for a, b in zip(held, peak, strict=True)]


def masks_of(chain: Chain) -> list[tuple[bool, ...]]:
    able = [(False, True) if math.isfinite(r) else (False,) for r in chain.recompute_s]
    return list(itertools.product(*able))


def is_allowed(chain: Chain, pipeline: Pipeline, first: tuple[int, ...]) -> bool:
    allowed = np.broadcast_to(chain.allowed, (chain.num_pieces, pipeline.num_stages))
    return all(allowed[first[s] : first[s + 1], s].all() for s in range(pipeline.num_stages))


def brute_force(chain: Chain, pipeline: Pipeline) -> float:
    best = np.inf
    for first in every_cut(chain.num_pieces, pipeline.num_stages):
        if not is_allowed(chain, pipeline, first):
            continue
        for mask in masks_of(chain):
            step, held = plain_cost(chain, pipeline, first, mask)
            if (np.array(held) <= pipeline.memory_bytes).all():
                best = min(best, step)
    return best


def random_case(seed: int) -> tuple[Chain, Pipeline]:
    """A chain of 2 to 6 pieces on up to 4 stages; alike or uneven, limited or not."""
    random = np.random.default_rng(seed)
    n = int(random.integers(2, 7))
    stages = int(random.integers(1, min(n, 4) + 1))
    alike = random.random() < 0.3

    def numbers(most: int, length: int = n) -> np.ndarray:
        drawn = random.integers(0, most + 1, length).astype(np.float64)
        return np.full(length, drawn[0]) if alike and length == n else drawn

    kinds = [tuple(range(stages))]
    if stages > 1:
        half = (stages + 1) // 2
        kinds += [
            tuple(s % half for s in range(stages)),
            tuple(min(s, stages - 1 - s) for s in range(stages)),
        ]
    group = kinds[random.integers(len(kinds))]
    groups = len(set(group))
    kept = numbers(20)
    recompute = numbers(5) * random.choice([1.0, 0.1])
    recompute[random.random(n) < random.choice([0.2, 1.0])] = np.inf
    allowed = random.random((n, stages)) < random.choice([1.0, 0.85])
    cuts = np.r_[0.0, numbers(3, n - 1), 0.0] * random.choice([0.0, 0.3])
    chain = Chain(
        time_s=numbers(10) + random.choice([0.0, 0.25]),
        recompute_s=recompute,
        once_s=numbers(10) * random.choice([0.0, 1.0]),
        resident_bytes=numbers(10),
        kept_bytes=kept,
        kept_if_recomputed_bytes=np.minimum(numbers(4), kept + random.integers(0, 2)),
        transient_bytes=numbers(10),
        working_bytes=numbers(10),
        cut_s=cuts,
        cut_bytes=np.r_[0.0, numbers(4, n - 1), 0.0],
        allowed=allowed,
        shared=(((0, n - 1), 7.0),) if random.random() < 0.4 else (),
    )
    limit = np.full(groups, np.inf)
    if random.random() < 0.8:
        whole = kept.sum() + chain.resident_bytes.sum() + chain.transient_bytes.max()
        limit = np.floor(whole * random.uniform(0.3, 2.0, groups)) + 1.0
        if random.random() < 0.5:
            limit[:] = limit[0]
    in_flight = random.integers(1, 5, stages)
    return chain, Pipeline(group, in_flight, int(random.integers(1, 9)), limit)


def assert_optimal(found: Assignment, chain: Chain, pipeline: Pipeline, best: float) -> None:
    assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.bound == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.bound <= found.objective
    assert (found.gap, found.status) == (0.0, "optimal")
    assert is_allowed(chain, pipeline, found.first)
    mask = tuple(found.recomputed.tolist())
    step, held = plain_cost(chain, pipeline, found.first, mask)
    assert step == pytest.approx(found.objective, rel=1e-12)
    assert held == pytest.approx(found.evaluation.memory_bytes.tolist(), rel=1e-12)
    assert (np.array(held) <= pipeline.memory_bytes).all()


@pytest.mark.parametrize("start", range(0, 600, 50))
def test_the_optimum_is_that_of_every_cut_and_every_mask(start: int) -> None:
    solved = 0
    for seed in range(start, start + 50):
        chain, pipeline = random_case(seed)
        best = brute_force(chain, pipeline)
        alone = pipeline.num_groups == pipeline.num_stages
        for method in ("shortest paths", "ILP") if alone else ("ILP",):
            if best == np.inf:
                with pytest.raises((StageHintError, StageMemoryError)):
                    assign(chain, pipeline, method=method)
                continue
            assert_optimal(assign(chain, pipeline, method=method), chain, pipeline, best)
            solved += 1
    assert solved > 15


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_no_group_of_any_cut_holds_more_than_the_most(start: int) -> None:
    for seed in range(start, start + 50):
        chain, pipeline = random_case(seed)
        most = chain.most_bytes(pipeline.num_stages, float(np.max(pipeline.in_flight)))
        for first in every_cut(chain.num_pieces, pipeline.num_stages):
            for mask in masks_of(chain):
                assert max(plain_cost(chain, pipeline, first, mask)[1]) <= most


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_the_ilp_finds_what_the_local_search_would(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_ilp, "good_cut", lambda *arguments: None)
    for seed in range(start, start + 50):
        chain, pipeline = random_case(seed)
        best = brute_force(chain, pipeline)
        if best < np.inf:
            assert_optimal(assign(chain, pipeline, method="ILP"), chain, pipeline, best)
            continue
        with pytest.raises((StageHintError, StageMemoryError)):
            assign(chain, pipeline, method="ILP")


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_a_given_cut_recomputes_what_is_best(start: int) -> None:
    limited = 0
    for seed in range(start, start + 50):
        chain, pipeline = random_case(seed)
        cuts = list(every_cut(chain.num_pieces, pipeline.num_stages))
        first = cuts[seed % len(cuts)]
        priced = [plain_cost(chain, pipeline, first, mask) for mask in masks_of(chain)]
        fitting = [t for t, held in priced if (np.array(held) <= pipeline.memory_bytes).all()]
        found = evaluate(chain, pipeline, first)
        assert found.fits == bool(fitting)
        if fitting:
            assert found.objective == pytest.approx(min(fitting), rel=1e-12)
            assert found.bound == pytest.approx(min(fitting), rel=1e-12)
            limited += bool(found.recomputed.any())
        else:  # each group that does not fit has the least memory it can
            least = np.min([held for _, held in priced], axis=0)
            over = least > pipeline.memory_bytes
            assert over.any()
            assert found.memory_bytes[over] == pytest.approx(least[over])
            assert (found.memory_bytes[~over] <= pipeline.memory_bytes[~over]).all()
        t, held = plain_cost(chain, pipeline, first, tuple(found.recomputed.tolist()))
        assert found.objective == pytest.approx(t, rel=1e-12)
        assert found.memory_bytes == pytest.approx(held)
    assert limited > 0


@pytest.mark.parametrize("seed", range(60))
def test_a_given_mask_is_kept(seed: int) -> None:
    chain, pipeline = random_case(seed)
    mask = np.isfinite(chain.recompute_s) & (np.arange(chain.num_pieces) % 2 == 0)
    best = np.inf
    for first in every_cut(chain.num_pieces, pipeline.num_stages):
        step, held = plain_cost(chain, pipeline, first, tuple(mask.tolist()))
        if is_allowed(chain, pipeline, first) and (np.array(held) <= pipeline.memory_bytes).all():
            best = min(best, step)
    if best == np.inf:
        with pytest.raises((StageHintError, StageMemoryError)):
            assign(chain, pipeline, recomputed=mask)
        return
    found = assign(chain, pipeline, recomputed=mask)
    assert_optimal(found, chain, pipeline, best)
    assert found.recomputed.tolist() == mask.tolist()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_knapsack_is_that_of_every_subset(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 8))
    numbers = st.lists(st.integers(0, 12), min_size=size, max_size=size)
    cost, saved, peaks = (np.array(data.draw(numbers), dtype=np.float64) for _ in range(3))
    peak, over = float(data.draw(st.integers(0, 8))), float(data.draw(st.integers(-10, 60)))
    best = np.inf
    for mask in itertools.product((False, True), repeat=size):
        chosen = np.array(mask)
        top = max(peak, float(peaks[chosen].max(initial=0.0)))
        if over + top - float(saved[chosen].sum()) <= 0.0:
            best = min(best, float(cost[chosen].sum()))
    picked = fit(cost, saved, peaks, peak, over)
    assert picked.bound == best
    if best < np.inf:
        assert float(cost[picked.mask].sum()) == best


def least_without_transfers(seconds: np.ndarray, stages: int, m: int) -> float:
    """The least slowest stage for which some cut exists; the sum is the same for every cut."""
    n = len(seconds)
    total = np.r_[0.0, np.cumsum(seconds)]
    best = np.inf
    for most in sorted({total[j] - total[i] for i in range(n) for j in range(i + 1, n + 1)}):
        reach = {0}  # positions that so many stages can end at
        for _ in range(stages):
            reach = {j for i in reach for j in range(i + 1, n + 1) if total[j] - total[i] <= most}
        if n in reach:
            best = min(best, total[n] + (m - 1) * most)
            break
    return float(best)


def test_24_uneven_pieces_on_4_stages() -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        seconds, cut = random.uniform(0.5, 2.0, 24), np.r_[0.0, random.uniform(0, 1, 23), 0.0]
        chain = Chain(seconds, cut_s=cut, once_s=random.uniform(0.0, 5.0, 24))
        pipeline = Pipeline(tuple(range(4)), 4 - np.arange(4), 8)
        ends = np.array(list(every_cut(24, 4)))
        total, once = np.r_[0.0, np.cumsum(seconds)], np.r_[0.0, np.cumsum(chain.once_s)]
        stage = total[ends[:, 1:]] - total[ends[:, :-1]] + cut[ends[:, 1:]] + cut[ends[:, :-1]]
        paid = (once[ends[:, 1:]] - once[ends[:, :-1]]).max(axis=1)
        best = float((stage.sum(axis=1) + 7 * stage.max(axis=1) + paid).min())
        for method in ("shortest paths", "ILP"):
            assert_optimal(assign(chain, pipeline, method=method), chain, pipeline, best)


@pytest.mark.parametrize("seed", range(3))
def test_48_uneven_pieces_on_8_stages(seed: int) -> None:
    """All C(47, 7) = 63 million cuts, as pairs of halves that meet at some piece.

    Of the halves that end there, only those count that no other beats in both sum and slowest.
    """
    random = np.random.default_rng(seed)
    seconds, cut = random.uniform(0.5, 2.0, 48), np.r_[0.0, random.uniform(0.0, 1.0, 47), 0.0]
    total = np.r_[0.0, np.cumsum(seconds)]

    def halves(low: int, high: int) -> np.ndarray:
        inner = np.array(list(itertools.combinations(range(low + 1, high), 3)))
        ends = np.c_[np.full(len(inner), low), inner, np.full(len(inner), high)]
        stage = total[ends[:, 1:]] - total[ends[:, :-1]] + cut[ends[:, 1:]] + cut[ends[:, :-1]]
        pairs = np.c_[stage.sum(axis=1), stage.max(axis=1)]
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        lowest = np.minimum.accumulate(np.r_[np.inf, pairs[:, 1]])
        return np.asarray(pairs[pairs[:, 1] < lowest[:-1]])

    best = np.inf
    for middle in range(4, 45):
        left, right = halves(0, middle), halves(middle, 48)
        slowest = np.maximum.outer(left[:, 1], right[:, 1])
        best = min(best, float((np.add.outer(left[:, 0], right[:, 0]) + 15 * slowest).min()))
    chain = Chain(seconds, cut_s=cut)
    pipeline = Pipeline(tuple(range(8)), 8 - np.arange(8), 16)
    assert_optimal(assign(chain, pipeline), chain, pipeline, best)
    even = Chain(seconds)
    assert_optimal(assign(even, pipeline), even, pipeline, least_without_transfers(seconds, 8, 16))


def test_a_heavy_head_takes_the_place_of_layers() -> None:
    """24 layers of a second and a head of 3: 27 seconds on 4 stages are 7 at the slowest."""
    chain = Chain(np.r_[np.ones(24), 3.0])
    pipeline = Pipeline(tuple(range(4)), 4 - np.arange(4), 8)
    found = assign(chain, pipeline)
    assert_optimal(found, chain, pipeline, 27.0 + 7 * 7.0)
    assert found.objective < evaluate(chain, pipeline, (0, 6, 12, 18, 25)).objective
    assert found.objective == evaluate(chain, pipeline, (0, 6, 13, 20, 25)).objective
    assert found.first[4] - found.first[3] <= 5
    # A first piece and transfers move the rest: the same layers before the head cost more there.
    uneven = Chain(np.r_[1.5, np.ones(23), 3.0], cut_s=0.25)
    found = assign(uneven, pipeline)
    assert_optimal(found, uneven, pipeline, brute_force(uneven, pipeline))


@pytest.mark.parametrize("head", [4.0, 4.5, 5.0, 6.0, 8.0])
def test_a_heavier_head_beats_the_map_that_people_write(head: float) -> None:
    """24 equal layers cut as [6, 7, 7, 4], the last with the head, as LiBai's example does."""
    chain = Chain(np.r_[np.ones(24), head])
    pipeline = Pipeline(tuple(range(4)), 4 - np.arange(4), 8)
    written = evaluate(chain, pipeline, (0, 6, 13, 20, 25)).objective
    assert assign(chain, pipeline).objective < written - 0.4


def layers_with_ends(n: int, uneven: bool) -> Chain:
    """An embedding, n layers and a head; bytes in GiB-like numbers, each layer recomputable."""
    random = np.random.default_rng(1)
    factor = random.uniform(0.7, 1.3, n) if uneven else np.ones(n)
    kept = np.rint(1e6 * factor)
    return Chain(
        time_s=np.r_[0.1, factor, 2.5],
        recompute_s=np.r_[np.inf, factor / 3, np.inf],
        once_s=np.r_[2.0, np.ones(n), 2.0],
        resident_bytes=np.r_[4e6, np.rint(2e6 * factor), 4e6],
        kept_bytes=np.r_[1e5, kept, 1e6],
        kept_if_recomputed_bytes=np.r_[1e5, np.full(n, 1e5), 1e6],
        transient_bytes=np.r_[0.0, np.full(n, 3e5), 2e6],
        working_bytes=np.r_[0.0, kept, 0.0],
        cut_s=0.02,
        cut_bytes=1e5,
        shared=(((0, n + 1), 4e6),),
    )


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("limit", [np.inf, 7.5e7, 6e7])
def test_126_layers_on_16_stages_take_seconds(uneven: bool, limit: float) -> None:
    chain = layers_with_ends(126, uneven)
    pipeline = Pipeline(tuple(range(16)), 16 - np.arange(16), 64, limit)
    start = time.process_time()
    found = assign(chain, pipeline)
    assert time.process_time() - start < 5.0
    assert (found.status, found.gap) == ("optimal", 0.0)
    assert found.evaluation.fits
    assert found.recomputed.any() == (limit < np.inf)
    even = tuple(np.linspace(0, 128, 17).astype(int).tolist())
    by_layers = evaluate(chain, pipeline, even)
    assert not by_layers.fits or found.objective <= by_layers.objective


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("limit", [np.inf, 8e7])
@pytest.mark.parametrize("schedule", ["interleaved", "V"])
def test_two_stages_on_each_of_8_groups(schedule: str, limit: float, uneven: bool) -> None:
    chain = layers_with_ends(32, uneven)
    group = tuple(min(s, 15 - s) if schedule == "V" else s % 8 for s in range(16))
    in_flight = np.full(16, 8.0) if schedule == "V" else 16.0 - np.arange(16) * 0.75
    pipeline = Pipeline(group, in_flight, 16, limit)
    found = assign(chain, pipeline, time_limit_s=2.5)
    assert found.evaluation.fits
    assert found.bound <= found.objective
    # Equal layers are proven at once; uneven ones are left with the gap of their mean.
    assert found.gap <= (0.0 if limit == np.inf and not uneven else 0.06)
    assert found.seconds < 10.0


def test_more_stages_than_pieces_says_both_numbers() -> None:
    with pytest.raises(TooManyStagesError, match=r"4 stages .* only 3 pieces") as caught:
        assign(Chain(np.ones(3)), Pipeline(tuple(range(4)), 1.0, 2))
    assert isinstance(caught.value, InfeasibleError)
    assert (caught.value.num_pieces, caught.value.num_stages) == (3, 4)


def test_hints_that_clash_are_named() -> None:
    allowed = np.ones((8, 3), dtype=np.bool_)
    allowed[2] = [False, False, True]
    allowed[5] = [True, False, False]
    allowed[7] = [False, False, True]
    with pytest.raises(StageHintError, match="piece 2 on stage 2, piece 5 on stage 0") as caught:
        assign(Chain(np.ones(8), allowed=allowed), Pipeline((0, 1, 2), 1.0, 2))
    assert (caught.value.pieces, caught.value.stages) == ((2, 5), ((2,), (0,)))


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_a_clash_is_one_and_every_piece_of_it_is_needed(start: int) -> None:
    clashes = 0
    for seed in range(start, start + 50):
        random = np.random.default_rng(seed)
        n, stages = 6, int(random.integers(1, 5))
        allowed = random.random((n, stages)) < 0.6
        pipeline = Pipeline(tuple(range(stages)), 1.0, 2)
        chain = Chain(np.ones(n), allowed=allowed)
        if any(is_allowed(chain, pipeline, first) for first in every_cut(n, stages)):
            assign(chain, pipeline)
            continue
        with pytest.raises(StageHintError) as caught:
            assign(chain, pipeline)
        clashes += 1
        only = np.ones_like(allowed)
        only[list(caught.value.pieces)] = allowed[list(caught.value.pieces)]
        cuts = list(every_cut(n, stages))
        assert not any(is_allowed(Chain(np.ones(n), allowed=only), pipeline, c) for c in cuts)
        for k in caught.value.pieces:
            less = only.copy()
            less[k] = True
            assert any(is_allowed(Chain(np.ones(n), allowed=less), pipeline, c) for c in cuts)
    assert clashes > 5


def test_the_least_memory_is_said() -> None:
    chain = Chain(np.ones(4), resident_bytes=np.array([5.0, 1.0, 1.0, 5.0]))
    with pytest.raises(StageMemoryError, match=r"into 5 bytes: .* needs 6 bytes") as caught:
        assign(chain, Pipeline((0, 1), 1.0, 2, 5.0))
    assert caught.value.proven
    assert (caught.value.needed_bytes, caught.value.limit_bytes) == (6.0, 5.0)
    with pytest.raises(StageMemoryError, match="of those tried") as caught:
        assign(chain, Pipeline((0, 1, 0), 1.0, 2, 5.0))
    assert not caught.value.proven
    assert caught.value.needed_bytes > 5.0


def test_no_cut_exceeds_less_than_is_said() -> None:
    said = 0
    for seed in range(600):
        chain, pipeline = random_case(seed)
        if pipeline.num_groups < pipeline.num_stages or brute_force(chain, pipeline) < np.inf:
            continue
        with pytest.raises((StageHintError, StageMemoryError)) as caught:
            assign(chain, pipeline)
        error = caught.value
        if isinstance(error, StageHintError):
            continue
        held = [
            plain_cost(chain, pipeline, first, mask)[1]
            for first in every_cut(chain.num_pieces, pipeline.num_stages)
            if is_allowed(chain, pipeline, first)
            for mask in masks_of(chain)
        ]
        least = (np.array(held) - pipeline.memory_bytes).max(axis=1).min()
        assert error.needed_bytes - error.limit_bytes == pytest.approx(least)
        said += 1
    assert said > 20


def test_a_transfer_within_a_group_is_free() -> None:
    chain = Chain(np.ones(4), cut_s=np.array([0.0, 1.0, 1.0, 1.0, 0.0]))
    plain = evaluate(chain, Pipeline((0, 1, 2, 3), 1.0, 1), (0, 1, 2, 3, 4))
    mirrored = evaluate(chain, Pipeline((0, 1, 1, 0), 1.0, 1), (0, 1, 2, 3, 4))
    assert plain.stage_s.tolist() == [2.0, 3.0, 3.0, 2.0]
    assert mirrored.stage_s.tolist() == [2.0, 2.0, 2.0, 2.0]


def test_no_time_gives_the_best_so_far_with_its_gap() -> None:
    chain = layers_with_ends(32, uneven=True)
    pipeline = Pipeline(tuple(s % 8 for s in range(16)), 4.0, 16)
    found = assign(chain, pipeline, time_limit_s=0.05)
    assert found.status == "time limit"
    assert 0.0 < found.gap < 1.0
    assert found.bound < found.objective


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain(np.ones((2, 2))),
        lambda: Chain(np.ones(2), once_s=np.ones(3)),
        lambda: Chain(np.array([1.0, np.nan])),
        lambda: Chain(np.array([1.0, -1.0])),
        lambda: Chain(np.ones(2), cut_s=np.ones(3)),
        lambda: Chain(np.ones(2), shared=(((2,), 1.0),)),
        lambda: Chain(np.zeros(0)),
        lambda: Pipeline((0, 2), 1.0, 1),
        lambda: Pipeline((0, 1), 0.0, 1),
        lambda: Pipeline((0, 1), 1.0, 0),
        lambda: Pipeline((0, 1), np.ones(3), 1),
        lambda: Chain(np.ones(2)).with_recomputed([True, False]),
        lambda: evaluate(Chain(np.ones(3)), Pipeline((0, 1), 1.0, 1), (0, 3, 3)),
        lambda: evaluate(Chain(np.ones(3)), Pipeline((0, 1), 1.0, 1), (0, 1, 2)),
        lambda: assign(
            Chain(np.ones(3), allowed=np.ones((3, 3), dtype=np.bool_)), Pipeline((0, 1), 1.0, 1)
        ),
        lambda: assign(Chain(np.ones(3)), Pipeline((0, 0), 1.0, 1), method="shortest paths"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make) -> None:
    with pytest.raises(ValueError):
        make()
