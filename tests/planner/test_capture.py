"""Capture and its clean-up passes: each shown on a small module, and each held to the values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.capture import capture, in_double
from autoplan.errors import CaptureError
from tests.planner.models import (
    MLP,
    Fn,
    captured_and_equal,
    gpt2,
    llama,
    ops,
    run_captured,
    token_ids,
)

HERE = Path(__file__).name


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-2.0, 2.0, 32).reshape(4, 8)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 12)


# -- arguments ---------------------------------------------------------------------------------


def test_one_tensor_given_twice_is_two_inputs() -> None:
    """Planned with ids as labels, called later with other labels: they must not be one input."""
    model, ids = gpt2(), token_ids()
    captured = captured_and_equal(model, ids, labels=ids)
    assert [each.path for each in captured.inputs_of("input")] == ["input_ids", "labels"]
    other = ids.flip(0)
    expected = model(ids, labels=other).loss
    assert torch.allclose(run_captured(captured, model, ids, labels=other).loss, expected)
    assert not torch.allclose(model(ids, labels=ids).loss, expected)


def test_arguments_may_be_trees() -> None:
    def forward(self: Any, batch: dict[str, Any], scale: float) -> Tensor:
        return self.linear(batch["x"] + batch["more"][0]) * scale

    model = Fn(forward, linear=nn.Linear(8, 4))
    batch = {"x": torch.randn(4, 8), "more": [torch.randn(8), None]}
    captured = captured_and_equal(model, batch, 3.0)
    assert len(captured.inputs_of("input")) == 2
    assert captured.leaves[-1] == 3.0


def test_no_weights_are_read() -> None:
    """A layer of a 70B model on the meta device: 2.1 billion numbers, none of them stored."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8192, 28672), nn.ReLU(), nn.Linear(28672, 8192))
    captured = capture(model, (torch.empty(1, 16, 8192),))
    assert ops(captured) == ["linear", "relu", "linear"]
    assert all(p.is_meta for p in model.parameters())
    shapes = {each.path: each.meta.shape for each in captured.inputs_of("parameter")}
    assert shapes["0.weight"] == (28672, 8192)


def test_the_graph_does_not_depend_on_where_the_weights_are() -> None:
    with torch.device("meta"):
        on_meta = llama()
    real = llama()
    ids = token_ids()
    graphs = [str(capture(m, (ids,), {"labels": ids}).graph) for m in (on_meta, real)]
    assert graphs[0] == graphs[1]


# -- parameters and buffers --------------------------------------------------------------------


class Tied(nn.Module):
    """One table for input and output; `head_first` registers (and names) the head before."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        for name in ("head", "table") if head_first else ("table", "head"):
            module = nn.Linear(8, 11, bias=False) if name == "head" else nn.Embedding(11, 8)
            setattr(self, name, module)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


@pytest.mark.parametrize("head_first", [False, True])
def test_tied_parameters_are_one(head_first: bool) -> None:
    captured = captured_and_equal(Tied(head_first), token_ids(2, 4, 11))
    kept, alias = ("head", "table") if head_first else ("table", "head")
    assert [each.path for each in captured.inputs_of("parameter")] == [f"{kept}.weight"]
    assert captured.aliases == {f"{alias}.weight": f"{kept}.weight"}


def test_a_module_used_under_two_names_is_one(linear: nn.Linear, x: Tensor) -> None:
    square = nn.Linear(8, 8)
    model = Fn(lambda self, x: self.two(self.one(x)), one=square, two=square)
    captured = captured_and_equal(model, x)
    assert [each.path for each in captured.inputs_of("parameter")] == ["one.weight", "one.bias"]
    assert captured.aliases == {"two.weight": "one.weight", "two.bias": "one.bias"}


def test_equal_parameters_are_not_tied(x: Tensor) -> None:
    """Ties go by identity: equal values do not make a tie."""
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    two.load_state_dict(one.state_dict())
    captured = captured_and_equal(Fn(lambda self, x: self.two(self.one(x)), one=one, two=two), x)
    assert captured.aliases == {}
    assert len(captured.inputs_of("parameter")) == 4


def test_buffers_are_inputs_of_their_own_kind(linear: nn.Linear, x: Tensor) -> None:
    model = Fn(lambda self, x: self.linear(x * self.scale + self.shift), linear=linear)
    model.register_buffer("scale", torch.randn(8))
    model.register_buffer("shift", torch.randn(8), persistent=False)
    captured = captured_and_equal(model, x)
    assert {each.path for each in captured.inputs_of("buffer")} == {"scale", "shift"}


def test_frozen_parameters_get_no_gradient(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    captured = captured_and_equal(model, x)
    gradients = {each.path: each.meta.requires_grad for each in captured.inputs_of("parameter")}
    expected = {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}
    assert gradients == expected
    flows = [node.meta["requires_grad"] for node in captured.graph.nodes if node.op != "output"]
    assert flows[-3:] == [False, False, True]  # linear, tanh, linear


def test_inference_needs_no_gradient(x: Tensor) -> None:
    captured = capture(MLP(), (x,), training=False)
    assert not any(node.meta["requires_grad"] for node in captured.graph.nodes)


def test_gradients_flow_into_arguments_that_want_one(linear: nn.Linear, x: Tensor) -> None:
    captured = capture(linear, (x.clone().requires_grad_(),))
    (argument,) = captured.inputs_of("input")
    assert argument.meta.requires_grad


def test_unused_parameters_survive(linear: nn.Linear, x: Tensor) -> None:
    model = Fn(lambda self, x: self.linear(x), linear=linear, spare=nn.Linear(3, 3))
    captured = captured_and_equal(model, x)
    paths = {each.path for each in captured.inputs_of("parameter")}
    assert paths == {"linear.weight", "linear.bias", "spare.weight", "spare.bias"}


def test_unused_arguments_survive(linear: nn.Linear, x: Tensor) -> None:
    captured = captured_and_equal(Fn(lambda self, x, y: self.linear(x), linear=linear), x, x)
    assert len(captured.inputs_of("input")) == 2


# -- constants ---------------------------------------------------------------------------------


def test_repeated_dimensions_of_constants_are_stored_once(linear: nn.Linear, x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        scale = (torch.arange(12.0) / 12).expand(4, 12) * torch.ones(4, 12)
        return self.linear(x) * scale

    captured = captured_and_equal(Fn(forward, linear=linear), x)
    assert [tuple(value.shape) for value in captured.constants.values()] == [(1, 12)]
    assert sorted(ops(captured)) == ["expand", "linear", "mul"]


@pytest.mark.parametrize(
    "masked",
    [
        lambda mask: torch.where(mask, 0.0, -1e4),
        lambda mask: torch.where(mask, torch.zeros(()), -1e4),
        lambda mask: torch.rsub(mask.float(), torch.ones(4, 12, 12)),
        lambda mask: mask.float().subtract(1).multiply(2).true_divide(3).to(torch.float64).float(),
        lambda mask: torch.greater_equal(mask.float(), 0.5).type(torch.float32).negative(),
    ],
)
def test_masks_of_many_rows_are_stored_once(masked: Any, linear: nn.Linear) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        at = torch.arange(12)
        mask = (at[:, None] >= at).expand(4, 12, 12)
        return self.linear(x) + masked(mask)

    captured = captured_and_equal(Fn(forward, linear=linear), torch.randn(4, 12, 8))
    assert {tuple(value.shape) for value in captured.constants.values()} == {(1, 12, 12)}


def test_tables_of_many_rows_are_stored_once(linear: nn.Linear) -> None:
    """Their size does not matter: what is computed of them would be as many times larger."""

    def forward(self: Any, x: Tensor) -> Tensor:
        table = torch.cumsum(torch.ones(1 << 12, 1 << 11), 1)
        rows, at = torch.arange(1 << 12), torch.arange(12)
        seen = table[rows[:, None, None], at[None, :, None]] >= table[rows[:, None, None], at]
        return self.linear(x) + seen.sum(0, keepdim=True) / (1 << 12)

    captured = captured_and_equal(Fn(forward, linear=linear), torch.randn(4, 12, 8))
    assert {tuple(value.shape) for value in captured.constants.values()} == {(1, 12, 12)}


def test_constants_may_be_returned(linear: nn.Linear, x: Tensor) -> None:
    captured_and_equal(Fn(lambda self, x: (self.linear(x), torch.arange(3)), linear=linear), x)


def test_literal_tensors_stay_right(linear: nn.Linear, x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.linear(x) + torch.tensor([1.0, 2.0, 3.0]).repeat(4)

    captured_and_equal(Fn(forward, linear=linear), x)


def test_random_numbers_are_refused_where_ranks_would_draw_apart(
    linear: nn.Linear, x: Tensor
) -> None:
    model = Fn(lambda self, x: self.linear(x) + torch.randperm(12), linear=linear)
    with pytest.raises(CaptureError, match=r"randperm.*models\.py.*pass them in"):
        capture(model, (x,))


def test_gpt2s_causal_mask_becomes_a_flag() -> None:
    sequence = 16
    captured = captured_and_equal(gpt2(), token_ids(4, sequence), labels=token_ids(4, sequence))
    constants = {tuple(value.shape) for value in captured.constants.values()}
    assert not any(shape.count(sequence) > 1 for shape in constants)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    calls = captured.graph.find_nodes(op="call_function", target=attention)
    assert len(calls) == 2
    for call in calls:
        assert call.args[3] is None
        assert call.args[5] is True


def _attend(mask_of: Any) -> Fn:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).split(8, -1))
        mask = mask_of(x.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)

    return Fn(forward, qkv=nn.Linear(8, 24))


@pytest.mark.parametrize(
    ("mask_of", "causal"),
    [
        (lambda s: torch.ones(s, s, dtype=torch.bool).tril(), True),
        (lambda s: torch.arange(s)[:, None] >= torch.arange(s), True),
        (lambda s: torch.ones(s, s, dtype=torch.bool).tril(1), False),
        (lambda s: torch.ones(s, s, dtype=torch.bool).tril().flip(0, 1), False),
        (lambda s: torch.zeros(s, s).masked_fill(torch.arange(s) > 3, -1e4), False),
        (lambda s: (torch.arange(s)[:, None] - torch.arange(s)).abs() < 2, False),
    ],
    ids=["tril", "comparison", "tril(1)", "anticausal", "float", "band"],
)
def test_only_a_causal_mask_becomes_the_flag(mask_of: Any, causal: bool) -> None:
    captured = captured_and_equal(_attend(mask_of), torch.randn(2, 6, 8))
    attention = torch.ops.aten.scaled_dot_product_attention.default
    (call,) = captured.graph.find_nodes(op="call_function", target=attention)
    flag = call.args[5] if len(call.args) > 5 else call.kwargs.get("is_causal", False)
    assert bool(flag) is causal
    assert bool(captured.constants) is not causal


def test_every_mask_is_judged_by_itself() -> None:
    """Layers may share a mask, or have others of the same shape."""

    def forward(self: Any, x: Tensor) -> Tensor:
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for mask in (causal, causal.flip(0, 1), causal):
            x = F.scaled_dot_product_attention(self.linear(x), x, x, attn_mask=mask)
        return x

    captured = captured_and_equal(Fn(forward, linear=nn.Linear(8, 8)), torch.randn(2, 6, 8))
    attention = torch.ops.aten.scaled_dot_product_attention.default
    calls = captured.graph.find_nodes(op="call_function", target=attention)
    assert [len(call.args) > 5 and call.args[5] is True for call in calls] == [True, False, True]


# -- no-ops, regions, in-place ---------------------------------------------------------------------


def test_no_ops_are_dropped(linear: nn.Linear, x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.linear(x.to(torch.float32).contiguous())
        y = F.dropout(y, 0.5, training=False).expand(4, 12)[:].view(4, 12)
        return F.dropout(y, 0.0).reshape(4, 12)

    assert ops(captured_and_equal(Fn(forward, linear=linear), x)) == ["linear"]


def test_what_changes_type_or_shape_is_no_no_op(linear: nn.Linear, x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.linear(x).double()[1:].view(-1)

    assert ops(captured_and_equal(Fn(forward, linear=linear), x)) == [
        "linear",
        "to",
        "slice",
        "view",
    ]


def test_contiguous_before_view_stays_right(linear: nn.Linear, x: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.linear(x).view(4, 3, 4).transpose(0, 1).contiguous().view(3, 16)

    captured_and_equal(Fn(forward, linear=linear), x)


def test_active_dropout_stays(x: Tensor) -> None:
    captured = capture(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)).train(), (x,))
    assert ops(captured) == ["linear", "dropout"]


def _without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.linear(x) + 1
    return y * self.linear(x)


def _with_gradient_inside(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.linear(x)
        with torch.enable_grad():
            z = self.linear(x * 2)
    return (y + z) * self.linear(x)


def _autocast_off(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = self.linear(x) + 1
    return y * self.linear(x)


def _autocast_off_without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        y = self.linear(x) + 1
    return y * self.linear(x)


@torch.no_grad()
def _pair(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return self.linear(x), x * 2


def _decorated(self: Any, x: Tensor) -> Tensor:
    one, two = _pair(self, x)
    return one + self.linear(two)


@pytest.mark.parametrize(
    "forward",
    [
        _without_gradient,
        _with_gradient_inside,
        _autocast_off,
        pytest.param(_autocast_off_without_gradient),
        _decorated,
    ],
)
def test_regions_are_inlined(forward: Any, linear: nn.Linear, x: Tensor) -> None:
    """Values and gradients: what ran without gradient passes none."""
    captured = captured_and_equal(Fn(forward, linear=linear), x)
    assert not any(name.startswith("wrap_with") for name in ops(captured))


def test_a_region_without_gradient_is_detached(linear: nn.Linear, x: Tensor) -> None:
    captured = captured_and_equal(Fn(_without_gradient, linear=linear), x)
    assert ops(captured).count("detach") == 3  # x, weight, bias
    assert not captured.graph.find_nodes(op="get_attr")


def _chain(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    y.add_(1)
    y.mul_(2)
    torch.relu_(y)
    return y.view(-1)


def _written_and_read(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    before = y * 3  # must see the value before the write
    z = y
    y.masked_fill_(x[:, :1] > 0, 0.5)
    return before + y * z


def _accumulated(self: Any, x: Tensor) -> Tensor:
    total = torch.zeros(4, 12)
    total.add_(self.linear(x))
    total += 1
    return total.clamp_(min=0)


def _residual(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x)
    out = F.dropout(y, 0.5, training=False)  # off, it returns y itself
    out += 1
    return y + out


def _in_place_cast(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x).float()
    y += 1
    return y


@pytest.mark.parametrize(
    "forward",
    [
        _chain,
        _written_and_read,
        _accumulated,
        pytest.param(_residual),
        pytest.param(_in_place_cast),
    ],
)
def test_in_place_ops_become_functional(forward: Any, linear: nn.Linear, x: Tensor) -> None:
    captured = captured_and_equal(Fn(forward, linear=linear), x)
    assert not any(name.endswith("_") for name in ops(captured))


def test_relu_in_place_modules(x: Tensor) -> None:
    captured_and_equal(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Flatten(0)), x)


class WriteToArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)  # line of the write to an argument
        return self.linear(x)


class WriteToParameter(WriteToArgument):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-1, 1)  # line of the write to a parameter
        return self.linear(x)


class WriteUnrecorded(WriteToArgument):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        with torch.no_grad():
            y.mul_(2)  # line of the write that no gradient sees
        return y


class WriteShape(WriteToArgument):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.t_()  # line of the write of a shape
        return y


def _line(text: str) -> int:
    """Number of the line of this file that ends in `text`."""
    lines = Path(__file__).read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.endswith(f"# line of {text}"))


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (WriteToArgument, "the write to an argument", "'x' is changed in place.*copy it"),
        (WriteToParameter, "the write to a parameter", "'linear.weight' is changed in place"),
        (WriteUnrecorded, "the write that no gradient sees", "no gradient.*out-of-place"),
        (WriteShape, "the write of a shape", "shape.*out-of-place"),
    ],
)
def test_writes_that_others_see_are_refused(
    model: type[nn.Module], text: str, message: str, x: Tensor
) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model(), (x.clone(),))
    assert f"{HERE}:{_line(text)}" in str(caught.value)


# -- types -------------------------------------------------------------------------------------


def test_a_float64_model_stays_in_float64() -> None:
    """Llama's norms and rotary embedding compute in float32 whatever the weights; not here."""
    model, ids = llama().double(), token_ids()
    captured = capture(model, (ids,), {"labels": ids})
    for node in captured.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            assert value.dtype == torch.float64, node
    result = run_captured(captured, model, ids, labels=ids)
    assert result.loss.dtype == result.logits.dtype == torch.float64
    assert torch.allclose(result.loss, model(ids, labels=ids).loss.double(), atol=1e-5)


def test_in_double_is_the_same_graph_in_float64() -> None:
    model, ids = llama(), token_ids()
    captured = capture(model, (ids,), {"labels": ids})
    double = in_double(captured)
    assert [n.name for n in double.graph.nodes] == [n.name for n in captured.graph.nodes]
    assert all(not each.meta.dtype.is_floating_point or each.meta.dtype == torch.float64
               for each in double.inputs)  # fmt: skip
    wide = model.double()
    result = run_captured(double, wide, ids, labels=ids)
    assert torch.allclose(result.loss, wide(ids, labels=ids).loss.double(), atol=1e-5)


def test_bfloat16_models_keep_their_casts() -> None:
    captured = capture(llama().bfloat16(), (token_ids(),), {"labels": token_ids()})
    types = {
        node.meta["val"].dtype
        for node in captured.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    }
    assert {torch.bfloat16, torch.float32} <= types


# -- fused projections -----------------------------------------------------------------------------


def _by_addmm(**given: Any) -> Any:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        return torch.addmm(self.bias, x, self.weight, **given).split(4, -1)

    return forward


def _by_reshaped_addmm(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    return torch.addmm(self.bias, x, self.weight).view(2, 2, 12).split(4, -1)


def _by_linear(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    return F.linear(x, self.weight.t(), self.bias).split(4, -1)


def _by_linear_without_bias(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    return F.linear(x.view(2, 2, 8), self.weight.t()).split(4, 2)


@pytest.mark.parametrize(
    "forward",
    [_by_addmm(), _by_reshaped_addmm, _by_linear, _by_linear_without_bias],
    ids=["addmm", "reshaped", "linear", "no bias"],
)
def test_fused_projections_are_split(forward: Any, x: Tensor) -> None:
    """One product a piece, from pieces of the weight; values and gradients as before."""
    members = {"weight": nn.Parameter(torch.randn(8, 12)), "bias": nn.Parameter(torch.randn(12))}
    captured = captured_and_equal(Fn(forward, **members), x, atol=1e-5)
    names = ops(captured)
    assert names.count("addmm") + names.count("linear") == 3
    last = [i for i, name in enumerate(names) if name == "split"][-1]
    assert last < min(i for i, name in enumerate(names) if name in ("addmm", "linear"))


@pytest.mark.parametrize(
    ("forward", "bias"),
    [
        pytest.param(_by_addmm(beta=2.0, alpha=3.0), (12,)),
        pytest.param(_by_addmm(), (4, 12)),
        pytest.param(_by_addmm(), (1,)),
        (lambda self, x: torch.addmm(self.bias, x, self.weight).split(5, -1), (12,)),
        (lambda self, x: torch.addmm(self.bias, x, self.weight).split(2, 0), (12,)),
        (lambda self, x: (lambda y: (*y.split(4, -1), y))(x @ self.weight + self.bias), (12,)),
    ],
    ids=["beta and alpha", "matrix bias", "one bias", "uneven", "rows", "read twice"],
)
def test_other_splits_stay_right(forward: Any, bias: tuple[int, ...], x: Tensor) -> None:
    members = {"weight": nn.Parameter(torch.randn(8, 12)), "bias": nn.Parameter(torch.randn(bias))}
    captured_and_equal(Fn(forward, **members), x, atol=1e-5)


# -- outputs -----------------------------------------------------------------------------------


@dataclass
class Pair:
    loss: Tensor
    rest: Any = None


torch.export.register_dataclass(Pair, serialized_type_name="tests.planner.Pair")


@pytest.mark.parametrize(
    "structure",
    [
        lambda y: y,
        lambda y: (y, y * 2),
        lambda y: [y, (y.sum(), {"a": y + 1})],
        lambda y: {"loss": y.sum(), "logits": y},
        lambda y: Pair(y.sum(), y),
        lambda y: Pair(y.sum(), None),
        lambda y: (y, None, 3, "text", 2.5, True),
        lambda y: (y, y),
    ],
    ids=["tensor", "tuple", "nested", "dict", "dataclass", "None", "plain values", "twice"],
)
def test_outputs_keep_their_structure(structure: Any, linear: nn.Linear, x: Tensor) -> None:
    captured_and_equal(Fn(lambda self, x: structure(self.linear(x)), linear=linear), x)


def test_model_output_of_transformers() -> None:
    ids = token_ids()
    captured = captured_and_equal(gpt2(), ids, labels=ids)
    assert len(captured.output_nodes) == 2  # loss and logits; no key-value cache


def test_the_key_value_cache_is_switched_off_only_while_capturing() -> None:
    model, ids = llama(use_cache=True), token_ids()
    assert model.config.use_cache
    captured = capture(model, (ids,), {"labels": ids})
    assert model.config.use_cache
    assert any("use_cache" in note for note in captured.notes)
    model.config.use_cache = False
    assert not capture(model, (ids,), {"labels": ids}).notes


def test_arguments_may_be_returned(linear: nn.Linear, x: Tensor) -> None:
    captured_and_equal(Fn(lambda self, x: (self.linear(x), x), linear=linear), x)


# -- errors ------------------------------------------------------------------------------------


class Branch(WriteToArgument):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.sum() > 0:  # line of the branch
            y = y + 1
        return y


class Number(WriteToArgument):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * int(x.sum().item())  # line of the number


class Chosen(WriteToArgument):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)[x[:, 0] > 0].sum()  # line of the choice


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Branch, "the branch"),
        (Number, "the number"),
        (Chosen, "the choice"),
    ],
)
def test_data_dependence_is_refused_at_its_line(
    model: type[nn.Module], text: str, x: Tensor
) -> None:
    with pytest.raises(CaptureError, match=r"(depends|branch) on data.*outside") as caught:
        capture(model(), (x,))
    assert f"{HERE}:{_line(text)}" in str(caught.value)


class Opaque:
    pass


def test_outputs_of_unknown_type_are_refused(linear: nn.Linear, x: Tensor) -> None:
    with pytest.raises(CaptureError, match="register_pytree_node"):
        capture(Fn(lambda self, x: Opaque(), linear=linear), (x,))


def test_wrong_arguments() -> None:
    model, x = MLP(), torch.randn(4, 8)
    with pytest.raises(CaptureError, match=r"write args=\(ids,\)"):
        capture(model, x)
    with pytest.raises(CaptureError, match="a module was given"):
        capture(model, (nn.ReLU(),))
    with pytest.raises(CaptureError, match=r"too many positional arguments.*args and kwargs"):
        capture(model, (x, x))
    with pytest.raises(CaptureError, match=r"missing a required argument.*args and kwargs"):
        capture(model)
    with pytest.raises(CaptureError, match="args and kwargs"):
        capture(model, (x,), {"nonsense": 1})


def test_kwargs_must_be_a_mapping() -> None:
    with pytest.raises(CaptureError):
        capture(MLP(), (torch.randn(4, 8),), torch.randn(4, 8))


def test_errors_name_the_users_code_only() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(MLP(), (torch.randn(4, 8), 1))
    assert "inspect.py" not in str(caught.value)
    with pytest.raises(CaptureError) as caught:
        capture(MLP(), (torch.randn(4, 9),))
    assert re.search(rf"{HERE}|models\.py", str(caught.value))
    assert "control flow" not in str(caught.value)


# -- autocast ----------------------------------------------------------------------------------


def test_autocast_inside_the_model_becomes_casts() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.norm(self.linear(x))
            attended = y.softmax(-1) @ y.T
            with torch.autocast("cpu", enabled=False):
                attended = attended.float() @ y.float()
            loss = F.mse_loss(attended, x)
        return loss

    torch.manual_seed(0)
    model = Fn(forward, linear=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    captured = captured_and_equal(model, torch.randn(4, 8), atol=1e-5)
    assert sum(name == "to" for name in ops(captured)) >= 3


def test_checks_of_values_are_left_out_and_noted() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.min() < -100 or x.isnan().any():
            raise ValueError("too low")
        if not (x < 100).all():
            raise ValueError("too high")
        assert x.sum() == x.sum()
        return self.linear(x)

    captured = captured_and_equal(Fn(forward, linear=nn.Linear(8, 8)), torch.randn(4, 8))
    assert ops(captured) == ["linear"]
    assert len(captured.notes) == 3
    assert all("check" in note and "test_capture.py" in note for note in captured.notes)


@pytest.mark.parametrize("name", ["expand", "other order"])
def test_repeated_key_heads_become_groups(name: str) -> None:
    def forward(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.scale * k, self.scale * v
        if name == "expand":
            k, v = (x[:, :, None].expand(2, 2, 3, 5, 4).reshape(2, 6, 5, 4) for x in (k, v))
        else:  # heads 0, 1, 0, 1, ...: no groups
            k, v = (x[:, None].expand(2, 3, 2, 5, 4).reshape(2, 6, 5, 4) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    model = Fn(forward, scale=nn.Parameter(torch.tensor(1.5)))
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    captured = captured_and_equal(model, q, k, v)
    [attention] = captured.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    assert bool(attention.kwargs.get("enable_gqa")) == (name == "expand")
    assert ("expand" in ops(captured)) == (name != "expand")
