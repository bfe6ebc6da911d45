"""Small models for the tests of the planner's passes, and the captured graph as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autoplan.capture import Captured, capture

aten = torch.ops.aten


class Fn(nn.Module):
    """A model from a function of (module, *args); keyword arguments become its members."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


class MLP(nn.Module):
    """Two linear layers and a scalar loss."""

    def __init__(self, width: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).square().mean()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    """`layers` blocks with a residual stream, and a scalar loss."""

    def __init__(self, layers: int = 2, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def gpt2(**changes: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 101, "n_positions": 32}
    small |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    small |= {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    return GPT2LMHeadModel(GPT2Config(**(small | changes)))


def llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    small |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "use_cache": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(small | changes)))


def llama_8b(layers: int, **changes: Any) -> nn.Module:
    """Llama-3-8B's widths without weights, in bfloat16."""
    widths = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    widths |= {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
    with torch.device("meta"):
        return llama(num_hidden_layers=layers, **(widths | changes)).to(torch.bfloat16)


def token_ids(batch: int = 4, sequence: int = 16, vocabulary: int = 101) -> Tensor:
    return torch.arange(batch * sequence).reshape(batch, sequence) * 7 % vocabulary


def run_captured(captured: Captured, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The captured graph on real arguments, node by node; outputs in the model's own structure."""
    return run_with_updates(captured, model, *args, **kwargs)[0]


def run_with_updates(
    captured: Captured, model: nn.Module, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Tensor]]:
    """What the captured graph returns, and the new values of the buffers that it changes."""
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    flat, spec = pytree.tree_flatten((args, kwargs))
    assert spec == captured.in_spec
    values: dict[str, Any] = {}
    for each in captured.inputs:
        if each.kind in ("parameter", "buffer"):
            values[each.node] = state[each.path]
        elif each.kind == "constant":
            values[each.node] = captured.constants[each.path]
        else:
            values[each.node] = flat[each.position]
    # A placeholder without an input is a plain value, which the graph does not read.
    ordered = [values.get(node.name) for node in captured.graph.find_nodes(op="placeholder")]
    graph = fx.Graph()
    graph.output(graph.graph_copy(captured.graph, {}))
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # views of what was contiguous: the rules do the same
    results = fx.Interpreter(fx.GraphModule({}, graph)).run(*ordered)
    count = len(results) - len(captured.updates)
    updates = dict(zip(captured.updates, results[count:], strict=True))
    return pytree.tree_unflatten(list(results[:count]), captured.out_spec), updates


def captured_and_equal(model: nn.Module, *args: Any, atol: float = 1e-6, **kwargs: Any) -> Captured:
    """Capture, and check that the graph computes what the model computes, gradients included."""
    captured = capture(model, args, kwargs)
    before = {path: buffer.clone() for path, buffer in model.named_buffers()}
    torch.manual_seed(0)
    result, updates = run_with_updates(captured, model, *args, **kwargs)
    for path, buffer in model.named_buffers():
        assert torch.equal(buffer, before[path]), f"the graph changed {path}"
    torch.manual_seed(0)
    expected = model(*args, **kwargs)
    assert_same(result, expected, atol)
    changed = {p for p, b in model.named_buffers() if not torch.equal(b, before[p])}
    assert changed <= set(updates)
    for path, value in updates.items():
        torch.testing.assert_close(value, model.get_buffer(path), atol=atol, rtol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [_gradients(each, parameters) for each in (result, expected)]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) is (other is None)
        if one is not None and other is not None:
            scale = float(other.abs().max()) + 1.0
            torch.testing.assert_close(one, other, atol=10 * atol * scale, rtol=0.0)
    return captured


def assert_same(result: Any, expected: Any, atol: float = 1e-6) -> None:
    """Equal structure, close tensors, equal plain values."""
    (got, got_spec), (wanted, spec) = map(pytree.tree_flatten, (result, expected))
    assert got_spec == spec
    for one, other in zip(got, wanted, strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, atol=atol, rtol=1e-5)
        else:
            assert one == other
            assert type(one) is type(other)


def _gradients(outputs: Any, parameters: list[Tensor]) -> list[Tensor | None]:
    leaves = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not leaves or not parameters:
        return []
    total = sum((x.double() * torch.linspace(1, 2, x.numel()).view(x.shape)).sum() for x in leaves)
    return list(torch.autograd.grad(total, parameters, allow_unused=True))


def ops(captured: Captured) -> list[str]:
    """Names of the graph's ops in order, without `aten.` and overload."""
    return [
        str(node.target).removeprefix("aten.").split(".")[0]
        for node in captured.graph.nodes
        if node.op == "call_function"
    ]
