"""Baselines: known schemes over all devices, priced by the same model as the plan."""

from __future__ import annotations

from autoplan.annotate import annotate
from autoplan.capture import Captured
from autoplan.errors import HintError, InfeasibleError
from autoplan.formulate import formulate
from autoplan.memory.peak import peak_memory
from autoplan.memory.within_memory import repeated_classes
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.plan import Baseline
from autoplan.pricing import Pricer
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.search import scheme_hints
from autoplan.solver import solve

SCHEMES = {
    "data parallel": "ddp",
    "FSDP": "fsdp",
    "Megatron tensor": "megatron",
    "Megatron with sequence": "megatron-sp",
}
"""Names in reports, and presets."""


def baselines(captured: Captured, request: Request) -> tuple[Baseline, ...]:
    """Every known scheme on one axis of all devices, as a forced plan whose memory is not limited.

    What a scheme leaves open the solver chooses, so that each is the best of its kind.
    """
    mesh = Mesh.of(devices=request.devices)
    pricer = request.pricer(mesh)
    if not mesh.ndim:
        return (_priced("one device", MeshChoice(mesh), captured, request, pricer),)
    return tuple(
        _priced(name, MeshChoice(mesh, {"devices": scheme}), captured, request, pricer)
        for name, scheme in SCHEMES.items()
    )


def _priced(
    name: str, choice: MeshChoice, captured: Captured, request: Request, pricer: Pricer
) -> Baseline:
    try:
        hints = scheme_hints(captured, choice)
        rules = rules_in_force()
        annotated = annotate(captured, choice.mesh, rules, hints, request.local_inputs)
        problem = formulate(annotated, pricer, request.whole_outputs)
        solution = solve(problem, repeated_classes(annotated), request.time_limit_s)
    except (HintError, InfeasibleError) as error:
        return Baseline(name, None, None, f"not possible: {error}")
    memory = peak_memory(annotated, solution.choices, pricer)
    return Baseline(name, solution.certificate.objective, memory.total)
