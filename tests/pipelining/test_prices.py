"""Prices by site and by piece are the solver's own, and a chain is what its pieces cost."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from autoplan.capture import capture
from autoplan.formulate import formulate
from autoplan.found import Found
from autoplan.layouts import B, Layout, P, Split
from autoplan.memory.liveness import timeline_of
from autoplan.pipelining.chains import chain_of, wires_of
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.prices import Sending, common_wire, site_times, wire_layout
from autoplan.request import make_request
from autoplan.search import search
from autoplan.strategies.rule import TensorMeta
from tests.end_to_end.piping import example_of, model_of

MODELS = ("gpt2", "t5", "resnet")
MESHES: dict[str, dict[str, Any]] = {
    "one": {"data": 1},
    "data": {"data": 2},
    "data x tensor": {"data": 2, "tensor": {"size": 2, "mode": "1d"}},
}


@cache
def found(name: str, mesh: str, microbatches: int = 2) -> Found:
    devices = {"one": 1, "data": 2, "data x tensor": 4}[mesh]
    request = make_request(
        devices, cluster="h100", parallel=MESHES[mesh], microbatches=microbatches
    )
    return search(capture(model_of(name), *example_of(name)), request)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", MODELS)
def test_sites_together_cost_what_the_solver_says(name: str, mesh: str) -> None:
    each = found(name, mesh)
    times = site_times(each.annotated, each.solution.choices, each.pricer, False)
    problem = formulate(each.annotated, each.pricer, False)
    assert times.step_s(2) == pytest.approx(problem.objective(each.solution.choices), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_together_cost_and_hold_what_the_model_does(name: str) -> None:
    each = found(name, "data x tensor")
    pieces = pieces_of(each.annotated.captured)
    sending = Sending(make_request(8, cluster="h100").cluster, 2, 4)
    chain = chain_of(each, pieces, sending, np.ones((1, 2), dtype=np.bool_))
    times = site_times(each.annotated, each.solution.choices, each.pricer, False)
    copied = [
        at
        for at, site in enumerate(each.annotated.sites)
        if not site.parameter_only and site.name.partition(":")[0] not in pieces.of
    ]
    whole = (times.forward_s + times.backward_s).sum()
    alone = (times.forward_s + times.backward_s)[copied].sum()
    assert chain.time_s.sum() == pytest.approx(whole - alone, rel=1e-9)
    # What constants alone make, such as positions, is no piece's: every stage has it.
    constant: set[int] = set()
    for at, site in enumerate(each.annotated.sites):
        read = {source.site for source in site.inputs}
        if site.parameter_only and site.kind != "parameter" and read <= constant:
            constant.add(at)
    once_s = np.delete(times.once_s, sorted(constant)).sum()
    assert chain.once_s.sum() == pytest.approx(once_s, rel=1e-9)
    timeline = timeline_of(each.annotated, each.pricer)
    turn = timeline.at(each.solution.choices, len(each.annotated.sites)).kinds
    resident = sum(turn.get(k, 0.0) for k in ("parameters", "optimizer", "gathered", "gradients"))
    shared = sum(size for _, size in chain.shared)
    assert chain.resident_bytes.sum() + shared == pytest.approx(resident, rel=1e-9)
    assert chain.kept_bytes.sum() <= turn["activations"] * (1 + 1e-9)
    assert chain.kept_bytes.sum() >= 0.8 * turn["activations"]


@pytest.mark.parametrize("name", MODELS)
def test_every_cut_sends_something_and_pays_for_it(name: str) -> None:
    each = found(name, "data")
    pieces = pieces_of(each.annotated.captured)
    sending = Sending(make_request(4, cluster="h100").cluster, 2, 2)
    chain = chain_of(each, pieces, sending, np.ones((1, 2), dtype=np.bool_))
    assert (chain.cut_s[1:-1] > 0).all()
    assert (chain.cut_bytes[1:-1] > 0).all()
    assert wires_of(each, pieces)


def test_one_rank_sends_nothing() -> None:
    assert Sending(make_request(4, cluster="h100").cluster, 1, 4).time_s(1e6) == 0.0


def test_a_value_travels_with_the_fewest_bytes() -> None:
    pricer = found("gpt2", "data").pricer

    meta = TensorMeta((8, 4), torch.float32, True)
    whole, split, addend = Layout((B,)), Layout((Split(0),)), Layout((P,))
    assert wire_layout(whole, split, meta, pricer) == split
    assert wire_layout(split, whole, meta, pricer) == split
    assert wire_layout(addend, whole, meta, pricer) == whole
    assert wire_layout(whole, whole, meta, pricer) == whole


def test_between_other_meshes_slices_are_the_same_for_all() -> None:

    meta = TensorMeta((8, 4), torch.float32, True)
    assert common_wire(meta, 4, 2) == Layout((Split(0), Split(0)))
    assert common_wire(meta, 4, 1) == Layout((Split(0),))
    assert common_wire(TensorMeta((6, 4), torch.float32), 4, 2) == Layout((B, B))
    assert common_wire(TensorMeta((), torch.float32), 4, 1) == Layout((B,))
