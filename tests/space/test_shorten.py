"""Short models: what stands for what, and that it costs the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoplan.annotate import annotate
from autoplan.capture import Captured, capture
from autoplan.formulate import formulate
from autoplan.mesh import Mesh
from autoplan.pipelining.pieces import pieces_of
from autoplan.registry import rules_in_force
from autoplan.request import make_request
from autoplan.sites import Annotated
from autoplan.space.estimate import _weighted, site_weights
from autoplan.space.refit import refitted
from autoplan.space.shorten import Short, shorten
from tests.planner.models import MLP, Residual, gpt2, llama, token_ids


def short_of(captured: Captured) -> Short:
    return shorten(captured, pieces_of(captured))


def residual(layers: int, rows: int = 8) -> Captured:
    return capture(Residual(layers), (torch.randn(rows, 16),))


def language(model: nn.Module, rows: int = 4) -> Captured:
    ids = token_ids(rows, 16)
    return capture(model, (ids,), {"labels": ids})


def t5(rows: int = 4) -> Captured:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=6,
        num_decoder_layers=7,
        num_heads=4,
        vocab_size=101,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
    )
    return language(T5ForConditionalGeneration(config), rows)


def ops(captured: Captured) -> list[Any]:
    return [
        (str(node.target), [tuple(v.shape) for v in [node.meta["val"]] if hasattr(v, "shape")])
        for node in captured.graph.nodes
        if node.op == "call_function"
    ]


def test_what_is_left_is_a_model_of_fewer_layers() -> None:
    short = short_of(residual(9))
    kept = len(short.pieces)
    assert kept < 9
    assert sum(short.counts) == 9
    assert ops(short.captured) == ops(residual(kept))
    short.captured.graph.lint()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_language_models(family: str) -> None:
    make = {
        "gpt2": lambda n: gpt2(n_layer=n),
        "llama": lambda n: llama(num_hidden_layers=n),
    }[family]
    whole = language(make(8))
    short = short_of(whole)
    blocks = sum(short.pieces.blocks)
    assert blocks < 8
    assert sum(short.counts) == len(pieces_of(whole))
    assert ops(short.captured) == ops(language(make(blocks)))


def test_encoder_and_decoder_are_two_runs() -> None:
    whole = t5()
    short = short_of(whole)
    long = [name for name, n in zip(short.pieces.names, short.counts, strict=True) if n > 1]
    assert {name.split(".")[0] for name in long} == {"encoder", "decoder"}
    names = [short.pieces.names[at] for at in short.stands]
    whole_names = pieces_of(whole).names
    assert [n.rsplit(".", 1)[-1] for n in names] == [n.rsplit(".", 1)[-1] for n in whole_names]
    assert sum(short.counts) == len(pieces_of(whole))
    short.captured.graph.lint()


@pytest.mark.parametrize(
    "captured", [lambda: residual(3), lambda: capture(MLP(), (torch.randn(4, 8),))]
)
def test_what_does_not_repeat_stays(captured: Any) -> None:
    whole = captured()
    assert short_of(whole).captured is whole


def test_blocks_of_other_sizes_are_not_alike() -> None:
    model = Residual(8)
    model.layers[4] = type(model.layers[0])(16)
    model.layers[4].up = nn.Linear(16, 32)
    model.layers[4].down = nn.Linear(32, 16)
    short = short_of(capture(model, (torch.randn(8, 16),)))
    assert "layers.4" in short.pieces.names
    assert sum(short.counts) == 8


def test_a_block_whose_value_is_returned_stays() -> None:
    class Returning(Residual):
        def forward(self, x: torch.Tensor) -> Any:
            for number, layer in enumerate(self.layers):
                x = layer(x)
                if number == 4:
                    middle = x
            return x.square().mean(), middle

    short = short_of(capture(Returning(9), (torch.randn(8, 16),)))
    assert "layers.4" in short.pieces.names


def whole_choices(short: Annotated, whole: Annotated, choices: list[int]) -> list[int]:
    """Every block as the kept block that is like it; `choices` must not tell kept blocks apart."""
    named = {site.name: choices[at] for at, site in enumerate(short.sites)}
    by_path = {(site.kind, site.path): choices[at] for at, site in enumerate(short.sites)}
    found = []
    shapes: dict[Any, int] = {}
    for at, site in enumerate(short.sites):
        shapes[_kind(site)] = choices[at]
    for site in whole.sites:
        found.append(
            named.get(site.name, by_path.get((site.kind, site.path), shapes.get(_kind(site), -1)))
        )
    return found


def _kind(site: Any) -> Any:
    path = ".".join("*" if part.isdigit() else part for part in site.path.split("."))
    op = site.call.op if site.call is not None else ""
    return site.kind, path, op, tuple(m.shape for m in site.outputs), len(site.inputs)


@pytest.mark.parametrize("mesh", [Mesh.of(x=2), Mesh.of(x=2, y=2)], ids=str)
def test_equal_blocks_cost_what_they_cost_in_the_whole_model(mesh: Mesh) -> None:
    """Counted as often as they stand there, whatever they choose, as long as all choose alike."""
    captured = residual(7)
    short = short_of(captured)
    request = make_request(
        mesh.num_devices, "cpu", {"mesh": dict(zip(mesh.axes, mesh.sizes, strict=True))}
    )
    pricer = request.pricer(mesh)
    small = annotate(short.captured, mesh, rules_in_force())
    large = annotate(captured, mesh, rules_in_force())
    weighted = _weighted(formulate(small, pricer, False), site_weights(small, short))
    problem = formulate(large, pricer, False)
    rng = np.random.default_rng(0)
    for _ in range(30):
        drawn: dict[Any, int] = {}
        choices = []
        for site in small.sites:
            kind = _kind(site)
            choice = drawn.setdefault(kind, int(rng.integers(len(site.candidates))))
            choices.append(choice % len(site.candidates))
        theirs = whole_choices(small, large, choices)
        a, b = weighted.objective(choices), problem.objective(theirs)
        assert a == pytest.approx(b, rel=1e-12) or (np.isinf(a) and np.isinf(b))


# -- other batches --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 12, 64])
@pytest.mark.parametrize("family", ["residual", "gpt2", "llama", "t5"])
def test_a_refitted_graph_is_the_captured_one(family: str, rows: int) -> None:
    if (family, rows) == ("t5", 1):
        return  # one row is a case of its own there: nothing is expanded
    make: Any = {
        "residual": lambda n: residual(5, n),
        "gpt2": lambda n: language(gpt2(n_layer=5), n),
        "llama": lambda n: language(llama(num_hidden_layers=5), n),
        "t5": t5,
    }[family]
    found = refitted(make(8), 8, make(4), 4, rows)
    assert found is not None
    real = make(rows)
    nodes, twins = list(found.graph.nodes), list(real.graph.nodes)
    assert len(nodes) == len(twins)
    for node, twin in zip(nodes, twins, strict=True):
        assert (node.name, str(node.target)) == (twin.name, str(twin.target))
        assert str((node.args, node.kwargs)) == str((twin.args, twin.kwargs))
        if isinstance(twin.meta.get("val"), torch.Tensor):
            assert tuple(node.meta["val"].shape) == tuple(twin.meta["val"].shape)
            assert node.meta["val"].dtype == twin.meta["val"].dtype
    assert found.inputs == real.inputs


def test_graphs_of_other_ops_are_no_line() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            return (x.relu() if x.shape[0] > 4 else x.sigmoid()).mean()

    one, other = (capture(Odd(), (torch.randn(n, 4),)) for n in (8, 4))
    assert refitted(one, 8, other, 4, 2) is None
