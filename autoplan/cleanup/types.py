"""Precision and gradients: what every value is computed in, and whether one flows back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from autoplan.cleanup.places import at
from autoplan.errors import CaptureError

aten = torch.ops.aten


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def compute_in_double(graph: fx.Graph) -> None:
    """Let every floating tensor be float64: casts to lower precision become casts to float64.

    A float64 model means float64; that some of its code says `.float()` is no wish for rounding.
    """
    for node in graph.nodes:
        if _makes_low_numbers(node):
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
        if node.op in ("call_function", "call_method"):
            node.args = tuple(torch.float64 if _is_low(a) else a for a in node.args)
            node.kwargs = {k: torch.float64 if _is_low(a) else a for k, a in node.kwargs.items()}
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            node.meta["val"] = type(value)(_doubled(each) for each in value)
        elif isinstance(value, torch.Tensor):
            node.meta["val"] = _doubled(value)


def _makes_low_numbers(node: fx.Node) -> bool:
    """Whether an op makes numbers, of no tensor, in torch's default type."""
    value = node.meta.get("val")
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and not node.all_input_nodes
        and isinstance(value, torch.Tensor)
        and value.dtype in _FLOATS
        and any(argument.name == "dtype" for argument in node.target._schema.arguments)
    )


_PRODUCTS = frozenset(
    {
        "addmm",
        "baddbmm",
        "bmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "linear",
        "matmul",
        "mm",
        "scaled_dot_product_attention",
    }
)


def refuse_mixed_products(graph: fx.Graph) -> None:
    """Raise CaptureError at a product of tensors of several types: traced, it fails when run."""
    for node in graph.nodes:
        if node.op != "call_function" or str(node.target).split(".")[1:2] == []:
            continue
        if str(node.target).split(".")[1] in _PRODUCTS:
            operands = [each for each in node.args[:3] if isinstance(each, fx.Node)]
            types = sorted({str(each.meta["val"].dtype) for each in operands})
            if len(types) > 1:
                raise CaptureError(
                    f"{node.target} is given {' and '.join(types)}{at(node)}; cast the arguments "
                    "to the model's type, or the model to theirs."
                )


def _is_low(argument: Any) -> bool:
    return isinstance(argument, torch.dtype) and argument in _FLOATS


def _doubled(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _FLOATS:
        return torch.empty(value.shape, dtype=torch.float64, device="meta")
    return value


def mark_gradients(
    graph: fx.Graph,
    kinds: Mapping[str, tuple[str, str]],
    frozen: Iterable[str],
    wanted: Iterable[str],
    training: bool,
) -> None:
    """Note on every node whether a gradient flows through it.

    From parameters that are not `frozen`, and from the arguments whose placeholders are `wanted`,
    to an output: a parameter that no output depends on has no gradient, as on one device.
    """
    frozen, wanted = set(frozen), set(wanted)
    for node in graph.nodes:
        flows = False
        if training and node.op == "placeholder":
            kind, path = kinds.get(node.name, ("constant", ""))
            flows = (kind == "parameter" and path not in frozen) or node.name in wanted
        elif training and node.op == "call_function" and not _ends_gradients(node):
            flows = any(each.meta.get("requires_grad") for each in node.all_input_nodes)
        value = node.meta.get("val")
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        floating = isinstance(first, torch.Tensor) and (
            first.is_floating_point() or first.is_complex()
        )
        node.meta["requires_grad"] = flows and floating
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "output" and node not in read:
            node.meta["requires_grad"] = False
        if node.op == "output" or node.meta["requires_grad"]:
            read.update(node.all_input_nodes)


_ENDS = frozenset(
    {
        "detach",
        "bernoulli",
        "exponential",
        "normal_functional",
        "uniform",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
    }
)


def _ends_gradients(node: fx.Node) -> bool:
    """Ops that read shape and type alone, or draw: no gradient flows back through them."""
    name = str(node.target).split(".")[1] if "." in str(node.target) else ""
    return name in _ENDS or name.endswith("_like")
