"""The collectives inside local programs: those that are priced are those that run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from autoplan.annotate import annotate
from autoplan.cost_models import Roofline, load_cluster
from autoplan.emit import emit
from autoplan.ledger import collectives
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer, Setting, inner_collectives
from autoplan.proof import Experiment, observe
from autoplan.runtime.program import Program
from autoplan.runtime.simulation import Simulator, shard
from autoplan.strategies import RULES
from tests.strategies.examples import EXAMPLES

FOUR, SQUARE = Mesh.of(d=4), Mesh.of(a=2, b=2)
_Traffic = Counter[tuple[str, int, str]]

WITH_INNER = [at for at, example in enumerate(EXAMPLES) if RULES[example.op].inner is not None]
NAMES = sorted({EXAMPLES[at].op for at in WITH_INNER})


def _differences(
    experiment: Experiment, mesh: Mesh
) -> dict[tuple[str, ...], tuple[_Traffic, _Traffic]]:
    """Labels of every candidate with inner collectives -> what is priced, and what runs."""
    pricer = Pricer(mesh, Roofline(load_cluster("cpu", mesh.num_devices, "cpu"), mesh), Setting())
    annotated = annotate(experiment.captured, mesh, RULES, lean=True)
    at = next(i for i, site in enumerate(annotated.sites) if site.kind == "op")
    site, choices = annotated.sites[at], [0] * len(annotated.sites)
    found = {}
    for number, candidate in enumerate(site.candidates):
        if not inner_collectives(site, candidate, mesh):
            continue
        choices[at] = number
        priced: _Traffic = Counter()
        for row in collectives(annotated, choices, pricer, whole_outputs=True):
            priced[row.kind, row.bytes, row.axis] += row.count
        programs = [
            emit(annotated, choices, pricer.routers, rank, whole_outputs=True)
            for rank in range(mesh.num_devices)
        ]
        found[candidate.labels] = priced, _traffic(experiment, mesh, programs)
    return found


def _traffic(experiment: Experiment, mesh: Mesh, programs: list[Program]) -> _Traffic:
    """What rank 0, which holds the largest shards, runs forward and backward."""
    simulator = Simulator(mesh)
    seen: _Traffic = Counter()
    simulator.comms[0].observer = lambda *call: seen.update([call])
    first, ranks = programs[0], range(mesh.num_devices)
    held = [experiment.parameters[spec.name] for spec in first.parameters]
    leaves = [
        [shard(value, spec.layout, mesh, rank).clone().requires_grad_() for rank in ranks]
        for value, spec in zip(held, first.parameters, strict=True)
    ]
    state = [[experiment.state[spec.name]] * len(ranks) for spec in first.state]
    inputs = [[experiment.arguments[at]] * len(ranks) for at, _ in first.inputs]
    values = simulator.run([each.prologue for each in programs], [*leaves, *state])
    values = simulator.run([each.body for each in programs], [*values, *inputs])
    total = [each for found in values for each in found if each.requires_grad]
    if total:
        torch.autograd.backward(total, [torch.ones_like(each) for each in total])
    return seen


def _check(number: int, mesh: Mesh) -> int:
    example = EXAMPLES[number]
    found = _differences(observe(example.fn, *example.tensors), mesh)
    for labels, (priced, seen) in found.items():
        assert priced == seen, labels
    return len(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_collectives_that_run_are_those_that_are_priced(name: str) -> None:
    """In the first example of an op in which any candidate has some."""
    examples = (at for at in WITH_INNER if EXAMPLES[at].op == name)
    assert any(_check(number, SQUARE) for number in examples)


@pytest.mark.slow
@pytest.mark.parametrize("number", WITH_INNER, ids=lambda at: str(EXAMPLES[at]))
@pytest.mark.parametrize("mesh", [FOUR, SQUARE], ids=str)
def test_so_they_are_in_every_example(mesh: Mesh, number: int) -> None:
    _check(number, mesh)
