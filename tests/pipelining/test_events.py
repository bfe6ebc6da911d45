import math
from dataclasses import replace
from itertools import product

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.errors import ConfigError
from autoplan.pipelining.events import Times, simulate
from autoplan.pipelining.schedules import SCHEDULES, Event, Schedule, read_schedule

SIZES = [
    (read_schedule(name, chunks), p, m)
    for name, chunks, p, m in (
        ("naive", None, 3, 1),
        ("gpipe", None, 4, 3),
        ("1f1b", None, 4, 7),
        ("interleaved", 2, 3, 8),
        ("interleaved", 3, 2, 4),
        ("zero-bubble", 2, 2, 6),
        ("zero-bubble", 1, 4, 6),
        ("zbv", None, 3, 4),
        ("zbv", None, 2, 6),
        ("dualpipev", None, 2, 5),
        ("dualpipev", None, 3, 8),
    )
]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Schedule, int, int, Times]:
    schedule, p, m = draw(st.sampled_from(SIZES))
    n = schedule.num_stages(p)
    seconds = st.one_of(st.just(0.0), st.floats(1e-6, 10.0))
    sizes = (n, n, n, n, n - 1, n - 1, p, p)
    lists = [draw(st.lists(seconds, min_size=size, max_size=size)) for size in sizes]
    return schedule, p, m, Times(*map(tuple, lists))


@settings(max_examples=300, deadline=None)
@given(drawn())
def test_the_run_is_the_longest_path(case: tuple[Schedule, int, int, Times]) -> None:
    schedule, p, m, times = case
    run = simulate(schedule.orders(p, m), times)
    longest = longest_path_s(schedule, p, m, times)
    assert run.makespan_s == pytest.approx(longest, rel=1e-12, abs=1e-12)

    for rank, events in enumerate(run.events):
        assert tuple(timed.event for timed in events) == schedule.orders(p, m)[rank]
        clock = times.before_s[rank]
        for timed in events:
            assert timed.rank == rank
            assert timed.start_s >= clock
            assert timed.end_s == timed.start_s + times.of(timed.event)
            clock = timed.end_s
    assert run.peak_in_flight == schedule.in_flight(p, m)


@settings(max_examples=150, deadline=None)
@given(drawn())
def test_no_run_beats_the_lower_bounds(case: tuple[Schedule, int, int, Times]) -> None:
    schedule, p, m, times = case
    run = simulate(schedule.orders(p, m), times)
    slack = 1e-9 * (1 + run.makespan_s)
    assert all(busy <= run.makespan_s + slack for busy in run.busy_s)
    assert all(idle >= -slack for idle in run.idle_s)
    once_s = 0.0  # one microbatch, there and back
    for s in range(schedule.num_stages(p)):
        once_s += times.forward_s[s] + min(times.backward_s[s], times.input_s[s])
        if s and schedule.rank_of(s, p) != schedule.rank_of(s - 1, p):
            once_s += times.forward_transfer_s[s - 1] + times.backward_transfer_s[s - 1]
    assert run.makespan_s >= times.before_s[0] + once_s + times.after_s[0] - slack
    assert 0 <= run.bubble_fraction + 1e-12 <= 1 + 1e-9


@settings(max_examples=150, deadline=None)
@given(drawn(), st.data())
def test_more_time_anywhere_never_ends_sooner(
    case: tuple[Schedule, int, int, Times], data: st.DataObject
) -> None:
    schedule, p, m, times = case
    orders = schedule.orders(p, m)
    field = data.draw(st.sampled_from(tuple(vars(times))))
    values = list(getattr(times, field))
    values[data.draw(st.integers(0, len(values) - 1))] += 1.0
    slower = simulate(orders, replace(times, **{field: tuple(values)}))
    assert slower.makespan_s >= simulate(orders, times).makespan_s


def longest_path_s(schedule: Schedule, p: int, m: int, times: Times) -> float:
    """The makespan, by a longest path: nodes are moments, edges what has to pass between them."""
    graph: nx.DiGraph[object] = nx.DiGraph()
    n = schedule.num_stages(p)
    moved = {s: schedule.rank_of(s, p) != schedule.rank_of(s + 1, p) for s in range(n - 1)}
    for rank, order in enumerate(schedule.orders(p, m)):
        last: object = "start"
        wait = times.before_s[rank]
        for event in order:
            length = {
                "forward": times.forward_s,
                "backward": times.backward_s,
                "backward_input": times.input_s,
                "backward_weight": times.weight_s,
            }[event.kind][event.stage]
            graph.add_edge(last, (event, "begins"), weight=wait)
            graph.add_edge((event, "begins"), (event, "ends"), weight=length)
            last, wait = (event, "ends"), 0.0
        graph.add_edge(last, "end", weight=times.after_s[rank])
    for s, i in product(range(n), range(m)):
        gradient = [Event("backward", s, i), Event("backward_input", s, i)]
        gradient = [event for event in gradient if (event, "ends") in graph]
        weights = Event("backward_weight", s, i)
        if (weights, "begins") in graph:
            graph.add_edge((gradient[0], "ends"), (weights, "begins"), weight=0.0)
        graph.add_edge((Event("forward", s, i), "ends"), (gradient[0], "begins"), weight=0.0)
        if s + 1 < n:
            there = Event("forward", s + 1, i)
            cost = times.forward_transfer_s[s] if moved[s] else 0.0
            graph.add_edge((Event("forward", s, i), "ends"), (there, "begins"), weight=cost)
        if s > 0:
            back = [Event("backward", s - 1, i), Event("backward_input", s - 1, i)]
            back = [event for event in back if (event, "begins") in graph]
            cost = times.backward_transfer_s[s - 1] if moved[s - 1] else 0.0
            graph.add_edge((gradient[0], "ends"), (back[0], "begins"), weight=cost)
    return float(nx.dag_longest_path_length(graph, weight="weight"))


def equal(n: int, forward_s: float = 1.0, backward_s: float = 2.0) -> Times:
    return Times((forward_s,) * n, (backward_s,) * n)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_gpipe_and_1f1b_on_equal_stages(name: str) -> None:
    """Narayanan et al. 2021, section 2.2: the bubble is (p-1) (f+b)."""
    for p, m in product(range(1, 7), (1, 4, 6, 9)):
        if name == "1f1b" and m < p:
            continue
        run = simulate(read_schedule(name).orders(p, m), equal(p, 1.25, 2.5))
        assert run.makespan_s == (m + p - 1) * 3.75
        assert run.bubble_fraction == pytest.approx((p - 1) / (m + p - 1), rel=1e-12)
        ideal = math.fsum(run.busy_s)
        assert math.fsum(run.idle_s) / ideal == pytest.approx((p - 1) / m, rel=1e-12)


def test_naive_uses_one_rank_at_a_time() -> None:
    run = simulate(SCHEDULES["naive"].orders(5, 1), equal(5))
    assert run.makespan_s == 15.0
    assert run.bubble_fraction == pytest.approx(4 / 5, rel=1e-12)


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_interleaving_divides_the_bubble_by_the_chunks(chunks: int) -> None:
    """Narayanan et al. 2021, section 2.2: (p-1) (f+b) / v, for whole rounds of microbatches."""
    schedule = read_schedule("interleaved", chunks)
    for p, rounds in product((2, 3, 4), (1, 2, 3)):
        m = rounds * p
        run = simulate(schedule.orders(p, m), equal(chunks * p, 1 / chunks, 2 / chunks))
        assert run.makespan_s == pytest.approx(3 * m + 3 * (p - 1) / chunks, rel=1e-12)
        plain = simulate(SCHEDULES["1f1b"].orders(p, m), equal(p))
        assert run.bubble_fraction < plain.bubble_fraction


@pytest.mark.parametrize("name", ["zero-bubble", "zbv", "dualpipev"])
def test_zero_bubble_schedules_idle_only_for_the_first_forward_to_arrive(name: str) -> None:
    """Forward and both halves of backward equally long: p-1 forwards of a stage, however many m."""
    for p, rounds in product((2, 3, 4, 5), (2, 4)):
        run = simulate(SCHEDULES[name].orders(p, rounds * p), equal(2 * p))
        assert run.makespan_s == 6 * rounds * p + (p - 1)
        assert run.idle_s == (p - 1,) * p


def test_each_cut_is_crossed_there_and_back() -> None:
    for p, m in product((2, 4), (1, 5)):
        times = replace(
            equal(p), forward_transfer_s=(0.25,) * (p - 1), backward_transfer_s=(0.5,) * (p - 1)
        )
        run = simulate(SCHEDULES["gpipe"].orders(p, m), times)
        assert run.makespan_s == 3 * (m + p - 1) + 0.75 * (p - 1)


def test_transfers_on_one_rank_are_free() -> None:
    """The middle cut of a V stands on one rank."""
    p = 3
    times = replace(equal(2 * p), forward_transfer_s=(0.0, 0.0, 99.0, 0.0, 0.0))
    times = replace(times, backward_transfer_s=times.forward_transfer_s)
    orders = SCHEDULES["zbv"].orders(p, 6)
    assert simulate(orders, times).makespan_s == simulate(orders, equal(2 * p)).makespan_s


def test_before_and_after_are_work_of_each_rank() -> None:
    orders = SCHEDULES["1f1b"].orders(3, 4)
    plain = simulate(orders, equal(3))
    run = simulate(orders, replace(equal(3), before_s=(2.0,) * 3, after_s=(5.0, 1.0, 30.0)))
    assert plain.makespan_s == 18.0
    assert run.ends_s == (18 + 2 + 5, 17 - 1 + 2 + 1, 16 - 2 + 2 + 30)
    assert run.makespan_s == 46.0
    assert run.busy_s == (12 + 7, 12 + 3, 12 + 32)


def test_forward_only_runs() -> None:
    for schedule, p, m in SIZES:
        n = schedule.num_stages(p)
        run = simulate(schedule.orders(p, m, forward_only=True), equal(n))
        assert run.makespan_s >= schedule.chunks * m
        if schedule.chunks == 1:
            assert run.makespan_s == m + p - 1


def test_halves_of_a_backward_are_half_unless_given() -> None:
    orders = SCHEDULES["zbv"].orders(2, 3)
    halves = replace(equal(4), input_s=(1.0,) * 4, weight_s=(1.0,) * 4)
    assert simulate(orders, equal(4)) == simulate(orders, halves)


def test_microbatches_in_flight_over_time() -> None:
    run = simulate(SCHEDULES["1f1b"].orders(2, 3), equal(2))
    assert run.in_flight(0) == ((0, 1), (1, 2), (6, 1), (6, 2), (9, 1), (12, 0))
    assert run.in_flight(1) == ((1, 1), (4, 0), (4, 1), (7, 0), (7, 1), (10, 0))


def test_a_blocked_order_names_who_waits_for_what() -> None:
    (first, last) = SCHEDULES["gpipe"].orders(2, 2)
    with pytest.raises(ConfigError) as error:
        simulate((tuple(reversed(first)), last), equal(2))
    assert str(error.value) == (
        "the pipeline's order never ends, its ranks wait for each other: "
        "rank 0 before the backward of microbatch 1 on stage 0 for the output of stage 0; "
        "rank 1 before the forward of microbatch 0 on stage 1 for the output of stage 0; "
        "take an order of `Schedule.orders`."
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (equal(3), "forward_s has 3 times, expected 2"),
        (replace(equal(2), before_s=(1.0,)), "before_s has 1 times, expected 2"),
        (replace(equal(2), backward_transfer_s=(1.0, 2.0)), "has 2 times, expected 1"),
        (equal(2, math.nan), "negative or not finite"),
        (equal(2, -1.0), "negative or not finite"),
    ],
)
def test_times_that_do_not_fit(times: Times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(SCHEDULES["gpipe"].orders(2, 2), times)


def test_orders_that_are_none() -> None:
    one = Event("forward", 0, 0)
    with pytest.raises(ValueError, match="forward of microbatch 0 on stage 0 stands twice"):
        simulate(((one, one),), equal(1))
    with pytest.raises(ValueError, match="stage 0 is on ranks 0 and 1"):
        simulate(((one,), (Event("forward", 0, 1),)), equal(1))
    with pytest.raises(ValueError, match="without gaps, got \\[1\\]"):
        simulate(((Event("forward", 1, 0),),), equal(1))
