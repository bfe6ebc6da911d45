"""Planning: capture -> annotate -> formulate -> solve, over the meshes in question; then a Plan."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from autoplan.baselines import baselines
from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured, capture, check_arguments
from autoplan.describe import describe_plan
from autoplan.errors import ConfigError, HintError, InfeasibleError, InputError
from autoplan.found import Found
from autoplan.hints.conflicts import explain_conflict
from autoplan.hints.demands import Demand, demands_of, only
from autoplan.hints.pins import PinPrice, price_pins
from autoplan.memory.schedule import Block
from autoplan.pipelining.describe import describe_pipeline
from autoplan.pipelining.planner import Piped, search_pipeline
from autoplan.pipelining.splitting import Split
from autoplan.plan import Baseline, Plan
from autoplan.pricing import Pricer
from autoplan.registry import rules_in_force
from autoplan.request import Request, make_request
from autoplan.runtime.batches import Example, microbatches, whole_batch
from autoplan.search import search
from autoplan.sites import Annotated
from autoplan.structure import structure_of
from autoplan.why.origin import Origin, recapture


@dataclass(frozen=True)
class Planned:
    """A solved problem with what emission needs: sites, choices, and prices of paths."""

    plan: Plan
    annotated: Annotated
    choices: tuple[int, ...]
    pricer: Pricer
    recomputed: tuple[Block, ...] = ()

    @property
    def stages(self) -> tuple[Planned, ...]:
        """The model as the one stage that it is."""
        return (self,)


@dataclass(frozen=True)
class PlannedPipeline:
    """A pipeline with what emission needs: every stage as a solved problem of its own."""

    plan: Plan
    stages: tuple[Planned, ...]
    split: Split


def plan_captured(captured: Captured, request: Request, model: str) -> Planned | PlannedPipeline:
    """The best plan over the request's meshes, with baselines and the prices of its hints.

    Raises HintError or InfeasibleError if none works, naming a smallest set of demands that
    conflict and the cheapest one to give up.
    """
    with _settled_heap():
        return _plan_captured(captured, request, model)


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """What is there already is left out of garbage collection.

    A third of planning's time would go into looking through torch's objects again and again.
    """
    settles = gc.isenabled() and gc.get_freeze_count() == 0
    if settles:
        gc.freeze()
    try:
        yield
    finally:
        if settles:
            gc.unfreeze()


def _plan_captured(captured: Captured, request: Request, model: str) -> Planned | PlannedPipeline:
    demands = demands_of(captured, request)

    def best(captured: Captured, request: Request) -> Found | Piped:
        if request.pipeline is None:
            return search(captured, request)
        return search_pipeline(captured, request)

    def without(kept: Collection[Demand]) -> Found | Piped:
        return best(*only(captured, request, kept))

    try:
        found = best(captured, request)
    except (HintError, InfeasibleError) as error:
        raise explain_conflict(demands, without, error) from error
    pins = _pin_prices(found, demands, without, request)
    if isinstance(found, Piped):
        return _planned_pipeline(found, request, model, baselines(captured, request), pins)
    plan = describe_plan(found, request, model, baselines(captured, request), pins)
    plan.remember(Origin(captured, request, model))
    choices = found.solution.choices
    return Planned(plan, found.annotated, choices, found.pricer, found.recomputed)


def _planned_pipeline(
    found: Piped,
    request: Request,
    model: str,
    known: tuple[Baseline, ...],
    pins: tuple[PinPrice, ...],
) -> PlannedPipeline:
    plan = describe_pipeline(found, request, model, known, pins)
    stages = tuple(
        Planned(described, each.annotated, each.solution.choices, each.pricer, each.recomputed)
        for described, each in zip(plan.stages, found.staged.stages, strict=True)
    )
    return PlannedPipeline(plan, stages, found.staged.split)


def _pin_prices(
    found: Found | Piped, demands: Collection[Demand], without: Any, request: Request
) -> tuple[PinPrice, ...]:
    """What each hint costs. A scheme alone is compared in the baselines, and costs no search."""
    kinds = {each.kind for each in demands}
    if not kinds & {"hint", "stage_map"} or request.held:
        return ()
    return price_pins(found, tuple(demands), without, request.time_limit_s / 2)


def plan(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    devices: int = 1,
    **options: Any,
) -> Plan:
    """Plan `model` for `devices` devices without running it; see `autoplan.plan`."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"plan takes an nn.Module, got {model!r}; build the model first.")
    request = make_request(devices, **options)
    kwargs = {} if kwargs is None else kwargs
    captured = capture_microbatch(model, args, kwargs, request)
    name, structure = type(model).__name__, structure_of(model)
    again = recapture(
        captured,
        (tuple(args), dict(kwargs)),
        lambda example: capture_microbatch(structure, *example, request),
    )
    planned = plan_captured(captured, request, name)
    return planned.plan.remember(Origin(captured, request, name, again))


def capture_microbatch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], request: Request
) -> Captured:
    """Capture one microbatch of the whole batch that the example arguments stand for."""
    check_arguments(args, kwargs)
    example: Example = (tuple(args), dict(kwargs))
    training = request.setting.training
    if request.local_inputs:
        example = whole_batch(example, request.devices)
    captured = capture(model, *example, training=training)
    if request.local_inputs:
        check_local_inputs(captured)
    count = request.setting.microbatches
    if count == 1:
        return captured
    parts = microbatches(example, count, arguments_without_batch(captured, rules_in_force()))
    return capture(model, *parts[0], training=training)


def check_local_inputs(captured: Captured) -> None:
    """Raise InputError for an argument that was put together along a dimension that is no batch."""
    wrong = arguments_without_batch(captured, rules_in_force())
    for each in captured.inputs_of("input"):
        if each.position in wrong:
            raise InputError(
                f"local_inputs=True joins {each.path!r} along dimension 0, which is not the batch "
                "in this model; make it a buffer, or pass whole inputs on every rank."
            )
