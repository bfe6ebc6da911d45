"""Planning: capture -> annotate -> formulate -> solve, over the meshes in question; then a Plan."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from autoplan import ledger
from autoplan.annotate import Annotated, Site, annotate, results_of, tensor_of
from autoplan.capture import Captured, capture
from autoplan.cost_models import Cluster, Roofline, load_cluster
from autoplan.errors import ConfigError, HintError, InfeasibleError, PlanFileError
from autoplan.formulate import formulate, repeated_blocks
from autoplan.hints import Hint, HintValue, parse_hints
from autoplan.layouts import local_shape
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice, mesh_choices
from autoplan.plan import FORMAT, Baseline, Certificate, Memory, OperationRow, Plan, TensorRow
from autoplan.pricing import Pricer, Setting, dtype_name
from autoplan.solver import Problem, Solution, Variable, solve
from autoplan.strategies import RULES
from autoplan.strategies.presets import preset_hints

_FOLD_FROM = 400
"""Sites above which repeated blocks share their choice; smaller models are solved unfolded."""


@dataclass(frozen=True)
class Request:
    """Everything but the model that a plan depends on."""

    devices: int
    cluster: Cluster
    meshes: tuple[MeshChoice, ...]
    hints: Mapping[str, HintValue]
    memory_bytes: int
    setting: Setting
    time_limit_s: float = 60.0
    local_inputs: bool = False
    whole_outputs: bool = False
    held: tuple[Hint, ...] = ()
    """Layouts of parameters that exist already, when another form of arguments is planned."""


@dataclass(frozen=True)
class Planned:
    """A solved problem with what emission needs: the sites, their choices, and the paths' prices."""

    plan: Plan
    annotated: Annotated
    choices: tuple[int, ...]
    pricer: Pricer


def make_request(
    devices: int,
    cluster: str | Cluster | None = None,
    parallel: Mapping[str, Any] | None = None,
    preset: str | None = None,
    hints: Mapping[str, HintValue] | None = None,
    memory: int | float | str | None = None,
    training: bool = True,
    optimizer: str = "adamw",
    microbatches: int = 1,
    time_limit_s: float = 60.0,
    local_inputs: bool = False,
    whole_outputs: bool = False,
) -> Request:
    """Check the arguments of `plan` and `parallelize`; ConfigError names what is wrong."""
    if isinstance(microbatches, bool) or not isinstance(microbatches, int) or microbatches < 1:
        raise ConfigError(f"microbatches must be a positive whole number, got {microbatches!r}.")
    if not isinstance(training, bool):
        raise ConfigError(f"training must be True or False, got {training!r}.")
    if (
        isinstance(time_limit_s, bool)
        or not isinstance(time_limit_s, (int, float))
        or time_limit_s <= 0
    ):
        raise ConfigError(
            f"time_limit_s must be a positive number of seconds, got {time_limit_s!r}."
        )
    if not isinstance(optimizer, str):
        raise ConfigError(f"optimizer is a name such as 'adamw' or 'none', got {optimizer!r}.")
    meshes = mesh_choices(parallel, preset, devices)
    loaded = load_cluster(cluster, devices, default=_local_profile())
    limit = loaded.memory_bytes if memory is None else read_bytes(memory)
    return Request(
        devices,
        loaded,
        meshes,
        dict(hints or {}),
        int(limit),
        Setting(training, optimizer, microbatches),
        time_limit_s,
        local_inputs,
        whole_outputs,
    )


def _local_profile() -> str:
    """The profile of this machine's device: by CUDA name where one is known, else the CPU's."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name().lower()
        for known in ("h200", "h100", "b200", "a100", "v100", "mi300x"):
            if known in name:
                return known
        return "a100"
    return "cpu"


_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
}


def read_bytes(memory: int | float | str) -> int:
    """Bytes from a number or a text such as "16GB", "80 GiB"."""
    amount = -1.0
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", memory.lower())
        if match and match.group(2) in _UNITS:
            amount = float(match.group(1)) * _UNITS[match.group(2)]
    elif isinstance(memory, (int, float)) and not isinstance(memory, bool):
        amount = float(memory)
    if not 1 <= amount < math.inf:
        raise ConfigError(f"memory is bytes per device, as a number or '16GB', got {memory!r}.")
    return int(amount)


def plan_captured(captured: Captured, request: Request, model: str) -> Planned:
    """The best plan over the request's meshes; raises HintError or InfeasibleError if none works."""
    best: Planned | None = None
    failure: HintError | InfeasibleError | None = None
    for choice in request.meshes:
        try:
            planned = _plan_on_mesh(captured, request, choice, model)
        except (HintError, InfeasibleError) as error:
            failure = failure or error
            continue
        # Meshes come by number of axes: of equal plans the one with fewer axes stays.
        if best is None or planned.plan.step_time_s < best.plan.step_time_s * (1 - 1e-9):
            best = planned
    if best is None:
        assert failure is not None
        raise failure
    return best


def _plan_on_mesh(captured: Captured, request: Request, choice: MeshChoice, model: str) -> Planned:
    mesh = choice.mesh
    hints = (
        *user_hints(captured, request, mesh),
        *scheme_hints(captured, choice),
        *request.held,
    )
    annotated = annotate(captured, mesh, RULES, hints, request.local_inputs)
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    solution, memory = _solve_within_memory(annotated, pricer, request)
    baseline = _baseline(captured, request)
    plan = describe_plan(annotated, solution, pricer, request, model, memory, baseline, hints)
    return Planned(plan, annotated, solution.choices, pricer)


def user_hints(captured: Captured, request: Request, mesh: Mesh) -> tuple[Hint, ...]:
    parameters = {each.path: len(each.meta.shape) for each in captured.inputs_of("parameter")}
    for alias, kept in captured.aliases.items():
        if kept in parameters:
            parameters[alias] = parameters[kept]
    hints = parse_hints(
        request.hints,
        mesh,
        parameters,
        module_paths(captured),
        {each.path: len(each.meta.shape) for each in captured.inputs_of("input")},
    )
    return tuple(
        replace(hint, pattern=captured.aliases.get(hint.pattern, hint.pattern)) for hint in hints
    )


def scheme_hints(captured: Captured, choice: MeshChoice) -> tuple[Hint, ...]:
    sizes = dict(zip(choice.mesh.axes, choice.mesh.sizes, strict=True))
    schemes = {axis: scheme for axis, scheme in choice.schemes.items() if axis in sizes}
    return preset_hints(captured, schemes, sizes)


def module_paths(captured: Captured) -> list[str]:
    """Every module that owns a node, and the modules around it."""
    paths: dict[str, None] = {}
    for node in captured.graph.nodes:
        parts = str(node.meta.get("path", "")).split(".") if node.op == "call_function" else []
        for end in range(1, len(parts) + 1):
            if parts[0]:
                paths[".".join(parts[:end])] = None
    return list(paths)


def _solve_within_memory(
    annotated: Annotated, pricer: Pricer, request: Request
) -> tuple[Solution, Memory]:
    """The fastest choices whose peak, measured by liveness, is within the limit.

    Without a binding limit that is the plain optimum. Otherwise the solver is given limits on the
    memory that it can sum (stored, gathered, kept for backward), narrowed by bisection between one
    whose plan's peak is too large and one that is known to fit; the bound is that of the first.
    """
    classes = repeated_blocks(annotated) if len(annotated.sites) > _FOLD_FROM else None
    free = formulate(annotated, pricer, None, request.whole_outputs)
    try:
        solution = solve(free, classes, request.time_limit_s)
    except InfeasibleError as error:
        raise InfeasibleError(
            "the hints leave no plan, whatever the memory: they fix layouts that no strategy of an "
            f"op joins ({error}). Drop or widen one."
        ) from error
    memory = ledger.peak_memory(annotated, solution.choices, pricer)
    if memory.total <= request.memory_bytes:
        return solution, memory
    seen = [(solution, memory), *_frugal(annotated, pricer, free, classes, request)]
    bound = solution.certificate.bound
    low, high = 0.0, float(request.memory_bytes) * 2
    limit = float(request.memory_bytes)
    for _ in range(_MEMORY_ROUNDS):
        try:
            solution = solve(replace(free, memory_limit=limit), classes, request.time_limit_s)
        except InfeasibleError:
            low, limit = limit, (limit + high) / 2
            continue
        memory = ledger.peak_memory(annotated, solution.choices, pricer)
        seen.append((solution, memory))
        if limit == request.memory_bytes:
            bound = max(bound, solution.certificate.bound)
        if memory.total <= request.memory_bytes:
            if (
                solution.certificate.objective <= bound * (1 + 1e-9)
                or limit == request.memory_bytes
            ):
                break
            low = limit
            limit = (limit + high) / 2
        else:
            high = limit
            limit = max((low + high) / 2, limit - (memory.total - request.memory_bytes))
        if high - low < 0.01 * request.memory_bytes:
            break
    fitting = [each for each in seen if each[1].total <= request.memory_bytes]
    if not fitting:
        least = min((each[1] for each in seen), key=lambda memory: memory.total)
        raise InfeasibleError(_too_little(least, annotated, request))
    solution, memory = min(fitting, key=lambda each: each[0].certificate.objective)
    return _bounded(solution, bound), memory


_MEMORY_ROUNDS = 8


def _bounded(solution: Solution, bound: float) -> Solution:
    """The solution with the bound that holds under the memory limit, and its gap to that."""
    proof = solution.certificate
    gap = max(0.0, (proof.objective - bound) / proof.objective) if proof.objective else 0.0
    gap = 0.0 if gap < 1e-9 else gap
    return replace(solution, certificate=replace(proof, bound=min(bound, proof.objective), gap=gap))


def _frugal(
    annotated: Annotated, pricer: Pricer, free: Problem, classes: Any, request: Request
) -> Iterator[tuple[Solution, Memory]]:
    """Plans that need little memory: least by two measures, of which neither is the peak itself."""
    results = [pricer.output_bytes(site) for site in annotated.sites]
    fastest = 1e-9
    for weight in (0.0, 1.0):
        variables = tuple(
            Variable(
                v.name,
                np.where(np.isfinite(v.cost), v.memory + weight * extra + fastest * v.cost, np.inf),
                np.zeros_like(v.memory),
            )
            for v, extra in zip(free.variables, results, strict=True)
        )
        edges = {k: np.where(np.isfinite(m), fastest * m, np.inf) for k, m in free.edges.items()}
        try:
            found = solve(Problem(variables, edges), classes, request.time_limit_s)
        except InfeasibleError:
            continue
        objective = free.objective(found.choices)
        proof = replace(found.certificate, objective=objective, bound=0.0, gap=1.0)
        memory = ledger.peak_memory(annotated, found.choices, pricer)
        yield Solution(found.choices, proof), memory


def _too_little(memory: Memory, annotated: Annotated, request: Request) -> str:
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "gathered parameters": memory.gathered,
        "activations": memory.activations,
    }
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"memory of {request.memory_bytes / 1e6:,.1f} MB a device is too small on mesh "
        f"{annotated.mesh}: the least that a plan was found for is {memory.total / 1e6:,.1f} MB, of "
        f"which {largest} take {parts[largest] / 1e6:,.1f} MB. Give more memory or devices, a smaller "
        "batch, or more microbatches."
    )


def _baseline(captured: Captured, request: Request) -> Baseline:
    """Plain data parallelism over all devices, priced by the same model, memory not limited."""
    mesh = Mesh.of(devices=request.devices)
    choice = MeshChoice(mesh, {"devices": "ddp"} if mesh.ndim else {})
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    try:
        annotated = annotate(
            captured, mesh, RULES, scheme_hints(captured, choice), request.local_inputs
        )
        classes = repeated_blocks(annotated) if len(annotated.sites) > _FOLD_FROM else None
        problem = formulate(annotated, pricer, None, request.whole_outputs)
        solution = solve(problem, classes, request.time_limit_s)
    except (HintError, InfeasibleError) as error:
        return Baseline("data parallel", None, None, f"not possible: {error}")
    memory = ledger.peak_memory(annotated, solution.choices, pricer)
    return Baseline("data parallel", solution.certificate.objective, memory.total)


def site_keys(annotated: Annotated) -> list[str]:
    """A name for every site that survives changes elsewhere in the model: path, op, number."""
    counts: dict[str, int] = {}
    keys: list[str] = []
    for site in annotated.sites:
        if site.kind == "box":
            keys.append(f"{keys[site.inputs[0].site]}:{site.inputs[0].output}")
            continue
        if site.call is None:
            keys.append(f"{site.kind} {site.path}")
            continue
        op = site.call.op.removeprefix("aten.").split(".")[0]
        name = f"{site.path}/{op}"
        counts[name] = counts.get(name, 0) + 1
        keys.append(f"{name}#{counts[name]}")
    return keys


def describe_plan(
    annotated: Annotated,
    solution: Solution,
    pricer: Pricer,
    request: Request,
    model: str,
    memory: Memory,
    baseline: Baseline,
    hints: Sequence[Hint],
) -> Plan:
    """The plain data of a solved problem."""
    keys = site_keys(annotated)
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, solution.choices, strict=True)]
    certificate = solution.certificate
    folded = certificate.folding
    return Plan(
        format=FORMAT,
        model=model,
        axes=annotated.mesh.axes,
        sizes=annotated.mesh.sizes,
        cluster=request.cluster.profile.name,
        training=request.setting.training,
        optimizer=request.setting.optimizer,
        microbatches=request.setting.microbatches,
        memory_limit_bytes=request.memory_bytes,
        local_inputs=request.local_inputs,
        whole_outputs=request.whole_outputs,
        choices={
            key: str(candidate)
            for key, candidate, site in zip(keys, chosen, annotated.sites, strict=True)
            if site.kind in ("parameter", "op", "box")
        },
        boxed=tuple(
            site.name
            for site in annotated.sites
            if site.kind == "box" and site.name in _asked(annotated, hints)
        ),
        tensors=tuple(_tensors(annotated, solution.choices)),
        operations=tuple(_operations(annotated, solution.choices, pricer, keys)),
        collectives=ledger.collectives(annotated, solution.choices, pricer, request.whole_outputs),
        memory=memory,
        devices_per_node=request.cluster.devices_per_node,
        step_time_s=certificate.objective,
        certificate=Certificate(
            objective=certificate.objective,
            bound=certificate.bound,
            gap=certificate.gap,
            seconds=certificate.seconds,
            status=certificate.status,
            num_variables=len(annotated.sites),
            num_classes=folded.num_classes if folded else len(annotated.sites),
            num_binaries=certificate.num_binaries,
        ),
        baseline=baseline,
        hints=tuple(dict.fromkeys(hint.origin for hint in hints)),
        notes=tuple(dict.fromkeys((*annotated.captured.notes, *annotated.notes))),
    )


def _asked(annotated: Annotated, hints: Sequence[Hint]) -> frozenset[str]:
    """Names of all boxing sites if some hint pins a value: such sites are there by request."""
    if not any(hint.at == "value" for hint in hints):
        return frozenset()
    return frozenset(site.name for site in annotated.sites if site.kind == "box")


def _tensors(annotated: Annotated, choices: Sequence[int]) -> Iterator[TensorRow]:
    mesh = annotated.mesh
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
    rows: dict[str, TensorRow] = {}

    def add(path: str, kind: str, at: int, output: int, use: str = "") -> None:
        meta, candidate = annotated.sites[at].outputs[output], chosen[at]
        layout = candidate.storage if candidate.storage is not None else candidate.outputs[output]
        local = local_shape(meta.shape, layout, mesh)
        rows[path] = TensorRow(path, kind, dtype_name(meta), meta.shape, local, str(layout), use)

    for at, site in enumerate(annotated.sites):
        if site.kind == "parameter":
            add(site.path, "parameter", at, 0, str(chosen[at].outputs[0]))
        elif site.kind in ("input", "buffer"):
            source = annotated.values.get((site.name, 0))
            add(site.path, site.kind, source.site if source else at, 0)
    for alias, kept in annotated.captured.aliases.items():
        if kept in rows:
            row = rows[kept]
            rows[alias] = TensorRow(
                alias, "parameter", row.dtype, row.shape, row.local_shape, row.layout, row.use
            )
    for path in module_paths(annotated.captured):
        results = results_of(annotated.captured.graph, path)
        if results and path not in rows:
            source = annotated.values[tensor_of(results[-1])]
            add(path, "module", source.site, source.output)
    yield from rows.values()


def _operations(
    annotated: Annotated, choices: Sequence[int], pricer: Pricer, keys: Sequence[str]
) -> Iterator[OperationRow]:
    times: dict[Any, tuple[float, float]] = {}
    for at, site in enumerate(annotated.sites):
        if site.call is None:
            continue
        candidate = site.candidates[choices[at]]
        kind = (id(site.candidates), choices[at])
        if kind not in times:
            times[kind] = pricer.op_times_s(site, candidate)
        forward_s, backward_s = times[kind]
        runs = pricer.runs(site)
        yield OperationRow(
            keys[at],
            site.path,
            site.call.op,
            str(candidate),
            str(candidate.outputs[0]) if candidate.outputs else "",
            site.outputs[0].shape if site.outputs else (),
            runs * forward_s,
            runs * backward_s,
            has_rule(site),
        )


def has_rule(site: Site) -> bool:
    """Whether the op can be split at all; ops on single numbers need no rule."""
    if site.call is None or site.rule is not None:
        return True
    return all(meta.numel <= 1 for meta in site.outputs)


def choices_of(plan: Plan, annotated: Annotated, name: str = "the plan") -> tuple[int, ...]:
    """The candidates that `plan` names; PlanFileError where it does not fit the model."""
    result = []
    for key, site in zip(site_keys(annotated), annotated.sites, strict=True):
        if key not in plan.choices:
            if len(site.candidates) == 1:
                result.append(0)
                continue
            raise PlanFileError(f"{name} does not mention {key!r} of this model; plan again.")
        texts = [str(candidate) for candidate in site.candidates]
        if plan.choices[key] not in texts:
            raise PlanFileError(
                f"{name} says {plan.choices[key]!r} for {key!r}; this model allows "
                f"{', '.join(sorted(set(texts))[:8])}."
            )
        result.append(texts.index(plan.choices[key]))
    return tuple(result)


def plan(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    devices: int = 1,
    **options: Any,
) -> Plan:
    """Plan `model` for `devices` devices without running it; see `autoplan.plan`."""
    request = make_request(devices, **options)
    captured = capture_microbatch(model, args, kwargs or {}, request)
    return plan_captured(captured, request, type(model).__name__).plan


def capture_microbatch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], request: Request
) -> Captured:
    """Capture one microbatch of the whole batch that the example arguments stand for."""
    from autoplan.runtime.batches import first_microbatch, whole_batch

    example = (tuple(args), dict(kwargs))
    if request.local_inputs:
        example = whole_batch(example, request.devices)
    example = first_microbatch(example, request.setting.microbatches)
    return capture(model, *example, training=request.setting.training)
