"""The model zoo's planning problems: reductions, dual bounds and folding lose nothing."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.cost_models import Roofline, load_cluster
from autoplan.formulate import formulate, repeated_blocks
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer, Setting
from autoplan.solver import Problem, solve, solve_ilp
from autoplan.strategies import RULES
from tests.zoo.families import seeded
from tests.zoo.test_zoo import PROMISED, needs_transformers

MESHES = (Mesh.of(a=4), Mesh.of(a=2, b=2))
CLUSTER = load_cluster("h100", 4, "h100")


def problem_of(name: str, mesh: Mesh) -> tuple[Problem, list[Hashable]]:
    model, args, kwargs = seeded(name)
    annotated = annotate(capture(model, args, kwargs), mesh, RULES)
    problem = formulate(annotated, Pricer(mesh, Roofline(CLUSTER, mesh), Setting()), False)
    return problem, repeated_blocks(annotated)


@pytest.mark.parametrize(
    "mesh", [MESHES[0], pytest.param(MESHES[1], marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", PROMISED)
def test_the_plain_ilp_finds_nothing_better(name: str, mesh: Mesh) -> None:
    """Every objective is proven, and all are one: whole, reduced, and begun with folded blocks."""
    needs_transformers(name)
    problem, classes = problem_of(name, mesh)
    plain = solve_ilp(problem, 240.0).certificate
    free = solve(problem).certificate
    folded = solve(problem, classes).certificate
    assert plain.gap == free.gap == folded.gap == 0.0
    assert folded.objective == pytest.approx(free.objective, rel=1e-12)
    assert plain.objective == pytest.approx(free.objective, rel=1e-9)
    assert folded.folding is None or folded.folding.cost_s >= 0.0
