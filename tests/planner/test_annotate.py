"""Annotate: which candidates every site has, and where boxing sites stand."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.cost_models import Roofline, load_cluster
from autoplan.errors import HintError
from autoplan.hints import Hint
from autoplan.layouts import BP, B, Split, local_shape
from autoplan.mesh import Mesh
from autoplan.pricing import Pricer, Setting
from autoplan.sites import Annotated, Site
from autoplan.strategies import RULES
from tests.planner.models import MLP, Fn, gpt2, llama, token_ids

MESHES = (Mesh.of(x=4), Mesh.of(a=2, b=2), Mesh.of(a=3, b=2), Mesh.of())


@pytest.fixture(scope="module")
def graphs() -> dict[str, Any]:
    ids = token_ids(6, 16)
    return {
        "gpt2": capture(gpt2(), (ids,), {"labels": ids}),
        "llama": capture(llama(), (ids,), {"labels": ids}),
        "mlp": capture(MLP(), (torch.randn(6, 8),)),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "mlp"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_candidate_gives_rows_to_half_of_the_ranks_of_each_cut(
    graphs: dict[str, Any], name: str, mesh: Mesh
) -> None:
    annotated = annotate(graphs[name], mesh, RULES)
    ranks = [mesh.coordinates(rank) for rank in range(mesh.num_devices)]
    seen: set[Any] = set()
    for site in annotated.sites:
        metas = site.call.inputs if site.call is not None else site.outputs
        for candidate in site.candidates:
            stored = () if candidate.storage is None else (candidate.storage,)
            layouts = [*candidate.inputs, *candidate.outputs, *stored]
            shapes = [
                *(meta.shape for meta in metas[: len(candidate.inputs)]),
                *(meta.shape for meta in site.outputs),
                *(site.outputs[0].shape for _ in stored),
            ]
            for shape, layout in zip(shapes, layouts, strict=True):
                if (shape, layout) in seen:
                    continue
                seen.add((shape, layout))
                assert len(layout) == mesh.ndim
                for dim, whole in enumerate(shape):
                    busy = sum(local_shape(shape, layout, mesh, at)[dim] > 0 for at in ranks)
                    cuts = len(list(layout.axes_of(dim)))
                    assert not whole or busy * 2**cuts >= len(ranks), f"{site.name}: {layout}"


@pytest.mark.parametrize("name", ["gpt2", "llama", "mlp"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_candidates_of_a_site_have_names_of_their_own(
    graphs: dict[str, Any], name: str, mesh: Mesh
) -> None:
    """A plan file names candidates by text: no two of a site may read alike."""
    for site in annotate(graphs[name], mesh, RULES).sites:
        assert len({str(candidate) for candidate in site.candidates}) == len(site.candidates), site


def test_whole_is_always_possible(graphs: dict[str, Any]) -> None:
    mesh = Mesh.of(a=2, b=2)
    for site in annotate(graphs["llama"], mesh, RULES).sites:
        whole = (B,) * mesh.ndim
        assert any(all(layout == whole for layout in c.outputs) for c in site.candidates), site.name


def _readers(graph: fx.Graph) -> Counter[tuple[str, int]]:
    """How many arguments read each tensor: counted from the graph alone."""
    count: Counter[tuple[str, int]] = Counter()
    for node in graph.nodes:
        if node.target is operator.getitem:
            continue
        flat: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), flat.append)
        for each in flat:
            if each.target is operator.getitem:
                count[each.args[0].name, each.args[1]] += 1
            else:
                count[each.name, 0] += 1
    return count


@pytest.mark.parametrize("name", ["gpt2", "llama", "mlp"])
def test_boxing_sites_stand_where_a_tensor_has_several_readers(
    graphs: dict[str, Any], name: str
) -> None:
    annotated = annotate(graphs[name], Mesh.of(x=2), RULES)
    boxed = {site.name for site in annotated.sites if site.kind == "box"}
    sites = {site.name: site for site in annotated.sites}
    several = {
        f"{node}:{output}"
        for (node, output), count in _readers(annotated.captured.graph).items()
        if count > 1
        # What has one candidate and no gradient is sliced by each reader for free.
        and (len(sites[node].candidates) > 1 or sites[node].outputs[output].requires_grad)
    }
    assert boxed == several


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_readers_read_the_boxing_site(graphs: dict[str, Any], name: str) -> None:
    annotated = annotate(graphs[name], Mesh.of(x=2), RULES)
    readers = Counter((s.site, s.output) for site in annotated.sites for s in site.inputs)
    for at, site in enumerate(annotated.sites):
        for output in range(len(site.outputs)):
            if site.kind != "box" and f"{site.name}:{output}" in {s.name for s in annotated.sites}:
                assert readers[at, output] == 1, site.name


def _site(annotated: Annotated, path: str, kind: str = "parameter") -> Site:
    return next(s for s in annotated.sites if s.kind == kind and s.path == path)


def test_hints_prune_storage_use_and_values(graphs: dict[str, Any]) -> None:
    mesh = Mesh.of(a=2, b=2)
    hints = (
        Hint("up.weight", "storage", {"a": frozenset({Split(0)})}, "one"),
        Hint("up.weight", "use", {"b": frozenset({BP})}, "two"),
        Hint("up", "value", {"a": frozenset({Split(1)}), "b": frozenset({B, BP})}, "three"),
        Hint("down", "op", {"b": frozenset({"i"})}, "four"),
    )
    annotated = annotate(graphs["mlp"], mesh, RULES, hints)
    weight = _site(annotated, "up.weight")
    assert {c.storage[0] for c in weight.candidates if c.storage} == {Split(0)}
    assert {c.outputs[0][1] for c in weight.candidates} == {BP}
    assert len({c.storage[1] for c in weight.candidates if c.storage}) == 3  # not pinned there
    result = _site(annotated, "up", "box")
    assert {c.outputs[0][0] for c in result.candidates} == {Split(1)}
    assert {c.outputs[0][1] for c in result.candidates} == {B, BP}
    assert {c.labels[1] for c in _site(annotated, "down", "op").candidates} == {"i"}
    free = annotate(graphs["mlp"], mesh, RULES)
    assert not any(s.kind == "box" and s.path == "up" for s in free.sites)


def test_a_hint_that_nothing_satisfies(graphs: dict[str, Any]) -> None:
    never = {"x": frozenset({Split(5)})}
    with pytest.raises(HintError, match="pin me"):
        annotate(
            graphs["mlp"], Mesh.of(x=2), RULES, (Hint("up.weight", "storage", never, "pin me"),)
        )
    soft = Hint("up.weight", "storage", never, "pin me", required=False)
    annotated = annotate(graphs["mlp"], Mesh.of(x=2), RULES, (soft,))
    assert annotated.notes == ("pin me does not fit 'up.weight' and is not applied there",)


def test_parameter_only_marks_the_prologue() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = torch.nn.functional.silu(self.linear.weight * self.scale).t()
        table = torch.arange(8.0) * 2
        return (x @ weight + table @ weight).sum()

    model = Fn(forward, linear=nn.Linear(8, 4, bias=False))
    model.register_buffer("scale", torch.randn(8))
    annotated = annotate(capture(model, (torch.randn(4, 8),)), Mesh.of(x=2), RULES)
    marked = {site.name: site.parameter_only for site in annotated.sites if site.kind == "op"}
    assert marked == {
        "mul": True, "silu": True, "t": True, "matmul": False, "matmul_1": True, "add": False,
        "sum_1": False,
    }  # fmt: skip
    assert all(s.parameter_only for s in annotated.sites if s.kind in ("parameter", "buffer"))
    assert not any(s.parameter_only for s in annotated.sites if s.kind == "input")


def test_random_ops_are_never_in_the_prologue() -> None:
    """Every microbatch draws its own numbers."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return (x @ torch.nn.functional.dropout(self.weight, 0.5)).sum()

    model = Fn(forward, weight=nn.Parameter(torch.randn(8, 8)))
    annotated = annotate(capture(model, (torch.randn(4, 8),)), Mesh.of(x=2), RULES)
    assert not any(s.parameter_only for s in annotated.sites if s.kind == "op")


def test_local_inputs_lie_split_over_every_axis(graphs: dict[str, Any]) -> None:
    annotated = annotate(graphs["mlp"], Mesh.of(a=2, b=3), RULES, local_inputs=True)
    (given,) = (s for s in annotated.sites if s.kind == "input")
    assert [c.outputs for c in given.candidates] == [((Split(0), Split(0)),)]


def test_the_loss_is_the_first_scalar_with_a_gradient(graphs: dict[str, Any]) -> None:
    annotated = annotate(graphs["gpt2"], Mesh.of(x=2), RULES)
    assert annotated.loss == 0
    assert annotated.outputs[0][1].shape == ()


def test_box_candidates_know_their_dtype() -> None:
    """Two tensors of one shape, kept by two readers each, in 2 and in 8 bytes a number."""

    def forward(self: Any, x: Tensor) -> Tensor:
        low = self.linear(x).sin()
        high = low.double().cos()
        return (low * low.exp()).sum() + (high * high.exp()).sum()

    model = Fn(forward, linear=nn.Linear(8, 8)).bfloat16()
    mesh = Mesh.of(x=2)
    captured = capture(model, (torch.randn(4, 8, dtype=torch.bfloat16),))
    annotated = annotate(captured, mesh, RULES)
    pricer = Pricer(mesh, Roofline(load_cluster("cpu", 2, "cpu"), mesh), Setting())
    peaks = {}
    for site in annotated.sites:
        if site.kind == "box" and site.outputs[0].shape == (4, 8):
            sizes = [pricer.local_bytes(site.outputs[0], c.outputs[0]) for c in site.candidates]
            peaks[site.outputs[0].dtype] = max(sizes)
    assert peaks == {torch.bfloat16: 64, torch.float64: 256}
