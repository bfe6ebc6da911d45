import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import networkx as nx
import pytest
import torch
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping

from autoplan.errors import AutoplanError, ConfigError
from autoplan.pipelining import schedules
from autoplan.pipelining.schedules import SCHEDULES, Event, Schedule, read_schedule

CHOICES = [
    *(read_schedule(name) for name in SCHEDULES),
    read_schedule("interleaved-1f1b", 3),
    read_schedule("zero-bubble", 1),
    read_schedule("zero-bubble", 3),
]


def runs(schedule: Schedule, num_ranks: int, num_microbatches: int) -> bool:
    try:
        schedule.check(num_ranks, num_microbatches)
    except ConfigError:
        return False
    return True


def sizes(schedule: Schedule) -> Iterator[tuple[int, int]]:
    """(ranks, microbatches) that it can run."""
    return ((p, m) for p, m in product(range(1, 6), range(1, 13)) if runs(schedule, p, m))


every_schedule = pytest.mark.parametrize("schedule", CHOICES, ids=lambda s: f"{s.name}-{s.chunks}")


@every_schedule
def test_orders_run_all_once_and_never_block(schedule: Schedule) -> None:
    for p, m in sizes(schedule):
        orders = schedule.orders(p, m)
        work = set(product(range(schedule.num_stages(p)), range(m)))
        assert len(orders) == p
        for kinds in (
            ("forward",),
            ("backward", "backward_input"),
            ("backward", "backward_weight"),
        ):
            ran = [(e.stage, e.microbatch) for order in orders for e in order if e.kind in kinds]
            assert len(ran) == len(work)
            assert set(ran) == work
        for rank, order in enumerate(orders):
            assert {event.stage for event in order} == set(schedule.stages_of(rank, p))
        assert nx.is_directed_acyclic_graph(precedence(orders))


@every_schedule
def test_forward_only_keeps_the_order_of_the_forwards(schedule: Schedule) -> None:
    for p, m in sizes(schedule):
        whole, orders = schedule.orders(p, m), schedule.orders(p, m, forward_only=True)
        for some, order in zip(whole, orders, strict=True):
            assert order == tuple(event for event in some if event.kind == "forward")
            assert len(order) == schedule.chunks * m
        assert nx.is_directed_acyclic_graph(precedence(orders))


def precedence(orders: schedules.Orders) -> "nx.DiGraph[Event]":
    """What comes before what: by the data, and by the order of each rank."""
    graph: nx.DiGraph[Event] = nx.DiGraph()
    events = {event for order in orders for event in order}
    for order in orders:
        nx.add_path(graph, order)
    for event in events:
        s, m = event.stage, event.microbatch
        before = {
            "forward": [Event("forward", s - 1, m)],
            "backward_weight": [Event("backward_input", s, m)],
        }.get(
            event.kind,
            [
                Event("forward", s, m),
                Event("backward", s + 1, m),
                Event("backward_input", s + 1, m),
            ],
        )
        graph.add_edges_from((each, event) for each in before if each in events)
    return graph


@every_schedule
def test_ranks_of_stages_are_those_of_torch(schedule: Schedule) -> None:
    style = "v" if schedule.v_shaped else "loop"
    for p in range(1, 9):
        n = schedule.num_stages(p)
        ours = {stage: schedule.rank_of(stage, p) for stage in range(n)}
        assert ours == generate_stage_to_rank_mapping(p, n, style)
        assert sorted(s for rank in range(p) for s in schedule.stages_of(rank, p)) == [*range(n)]


@pytest.mark.parametrize("schedule", CHOICES[1:], ids=lambda s: f"{s.name}-{s.chunks}")
def test_what_is_checked_is_what_torch_can_build(schedule: Schedule) -> None:
    for p, m in product(range(2, 7), range(1, 21)):
        if runs(schedule, p, m):
            schedule.orders(p, m)
        else:
            with pytest.raises(ValueError):
                schedules._torch_orders(schedule, p, m)


def test_in_flight() -> None:
    for p, m in product(range(1, 7), range(1, 10)):
        assert read_schedule("gpipe").in_flight(p, m) == (m,) * p
        if m >= p:
            assert read_schedule("1f1b").in_flight(p, m) == tuple(min(m, p - s) for s in range(p))
    assert read_schedule("naive").in_flight(4, 1) == (1,) * 4
    for p in range(2, 7):
        assert read_schedule("zbv").in_flight(p, 4 * p) == tuple(range(2 * p, 0, -1))


def test_a_split_backward_holds_its_microbatch_until_the_weight_half() -> None:
    schedule = read_schedule("zero-bubble", 1)
    short = {"forward": "F", "backward_input": "I", "backward_weight": "W"}
    assert [
        " ".join(f"{short[event.kind]}{event.microbatch}" for event in order)
        for order in schedule.orders(3, 4)
    ] == [
        "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]
    assert schedule.in_flight(3, 4) == (3, 3, 3)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("1F1B", "1f1b"),
        ("GPipe", "gpipe"),
        ("Naive", "naive"),
        ("interleaved", "interleaved-1f1b"),
        ("Interleaved1F1B", "interleaved-1f1b"),
        ("interleaved_1f1b", "interleaved-1f1b"),
        ("InterleavedZeroBubble", "zero-bubble"),
        ("zero bubble", "zero-bubble"),
        ("ZBV", "zbv"),
        ("ZBVZeroBubble", "zbv"),
        ("DualPipeV", "dualpipev"),
    ],
)
def test_spellings(spelled: str, name: str) -> None:
    assert read_schedule(spelled) == SCHEDULES[name]


@pytest.mark.parametrize(
    ("name", "chunks", "p", "m", "message"),
    [
        ("1f2b", None, 2, 2, "no pipeline schedule is called '1f2b' (did you mean '1f1b'?)"),
        (None, None, 2, 2, "no pipeline schedule is called None; there are 'naive', 'gpipe'"),
        ("DualPipe", None, 2, 2, "(did you mean 'dualpipev'?)"),
        ("gpipe", 2, 2, 2, "'gpipe' has exactly 1 stage per rank, got 2"),
        ("zbv", 3, 2, 2, "'zbv' has exactly 2 stages per rank, got 3"),
        ("interleaved", 1, 2, 2, "at least 2 stages per rank, got 1; use '1f1b'"),
        ("interleaved", 0, 2, 2, "stages per rank must be a positive whole number, got 0"),
        ("naive", None, 2, 4, "got 4; use schedule 'gpipe', or microbatches=1"),
        ("gpipe", None, 0, 4, "pipeline ranks must be a positive whole number, got 0"),
        ("gpipe", None, 2, 2.0, "microbatches must be a positive whole number, got 2.0"),
        ("1f1b", None, 4, 3, "'1f1b' on 4 pipeline ranks needs at least 4 microbatches, got 3"),
        ("dualpipev", None, 4, 7, "needs at least 8 microbatches, got 7; use microbatches=8"),
        (
            "interleaved",
            None,
            4,
            9,
            "in 2 equal rounds, which 9 microbatches do not fill; use 8 or 10",
        ),
        (
            "zero-bubble",
            None,
            3,
            11,
            "in 3 equal rounds, which 11 microbatches do not fill; use 9 or 12",
        ),
        ("zbv", None, 1, 4, "needs at least 2 pipeline ranks, got 1"),
    ],
)
def test_errors_name_the_fix(name: str, chunks: int | None, p: int, m: int, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_schedule(name, chunks).orders(p, m)
    assert message in str(error.value)


def test_v_shaped_schedules_are_refused_where_they_hang() -> None:
    for name, schedule in SCHEDULES.items():
        reason = schedule.refused("gloo", "2.12.1+cpu")
        assert (reason is not None) == (name in ("zbv", "dualpipev"))
        assert schedule.refused("gloo", "2.13.0+cpu") is None
        assert schedule.refused("gloo", "3.0.0a0+git1234") is None
        assert schedule.refused("nccl", "2.11.0") is None
    assert "hangs on gloo under torch 2.9.1" in str(SCHEDULES["zbv"].refused("gloo", "2.9.1"))


def test_the_executed_order_of_1f1b_and_not_the_one_torch_prints() -> None:
    """torch's `pipeline_order` of 1F1B skips microbatch 0 on the last stage; its loop does not."""
    last = read_schedule("1f1b").orders(2, 3)[1]
    assert [(e.kind, e.microbatch) for e in last] == [
        (kind, m) for m in range(3) for kind in ("forward", "backward")
    ]


def test_an_incomplete_order_of_another_torch_is_no_order() -> None:
    schedule = SCHEDULES["1f1b"]
    orders = schedule.orders(2, 3)
    schedules._check_complete(orders, schedule, 2, 3)
    for rank in range(2):
        broken = (orders[0], orders[1][:-1]) if rank else (orders[0][1:], orders[1])
        with pytest.raises(AutoplanError, match=r"once per stage and microbatch; use torch 2\.11"):
            schedules._check_complete(broken, schedule, 2, 3)


def test_naming_a_schedule_does_not_import_torchs_pipelines() -> None:
    code = (
        "import sys, autoplan.pipelining.schedules as s; s.read_schedule('zbv').check(2, 2); "
        "sys.exit('torch.distributed.pipelining' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_stand_ins_need_no_process_group() -> None:
    assert not torch.distributed.is_initialized()
    read_schedule("dualpipev").orders(3, 7)
    assert not torch.distributed.is_initialized()
