"""Models whose blocks the tests recompute, posed as problems; importing this stays cheap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.formulate import formulate
from autoplan.memory.schedule import Block
from autoplan.mesh import Mesh
from autoplan.pipelining.pieces import pieces_of
from autoplan.pricing import Pricer
from autoplan.recompute.blocks import blocks_of, named_blocks
from autoplan.request import Request, make_request
from autoplan.sites import Annotated
from autoplan.solver import Problem, solve
from autoplan.strategies import RULES
from tests.planner.models import Residual, gpt2, token_ids

NAMES = ("chain", "gpt2", "two axes")


@dataclass(frozen=True, eq=False)
class Posed:
    """A model on a mesh, with its problem and its numbered blocks."""

    annotated: Annotated
    pricer: Pricer
    request: Request
    problem: Problem
    blocks: tuple[Block, ...]


@cache
def posed(name: str, microbatches: int = 1) -> Posed:
    axes = {"chain": {"x": 2}, "gpt2": {"x": 2}, "two axes": {"a": 2, "b": 2}}[name]
    captured: Any
    if name == "gpt2":
        ids = token_ids(4, 16)
        captured = capture(gpt2(resid_pdrop=0.1), (ids,), {"labels": ids})
    else:
        captured = capture(Residual(4), (torch.randn(64, 16),))
    mesh = Mesh.of(**axes)
    request = make_request(mesh.num_devices, "cpu", {"mesh": axes}, microbatches=microbatches)
    annotated = annotate(captured, mesh, RULES)
    pricer = request.pricer(mesh)
    problem = formulate(annotated, pricer, request.whole_outputs)
    names = named_blocks(pieces_of(captured), "all")
    return Posed(annotated, pricer, request, problem, blocks_of(annotated, pricer, names))


def random_choices(annotated: Annotated, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(rng.integers(len(site.candidates))) for site in annotated.sites]


def subsets(blocks: Sequence[Block]) -> Iterator[tuple[Block, ...]]:
    """All of them, from the empty one on."""
    for bits in range(2 ** len(blocks)):
        yield tuple(block for number, block in enumerate(blocks) if bits >> number & 1)


def finite_choices(problem: Problem, seed: int) -> tuple[int, ...]:
    """Choices that the problem allows: the cheapest under random costs."""
    rng = np.random.default_rng(seed)
    variables = tuple(
        replace(each, cost=np.where(np.isfinite(each.cost), rng.random(each.cost.size), np.inf))
        for each in problem.variables
    )
    edges = {edge: np.where(np.isfinite(each), 0.0, np.inf) for edge, each in problem.edges.items()}
    return solve(Problem(variables, edges), None, 20.0).choices
