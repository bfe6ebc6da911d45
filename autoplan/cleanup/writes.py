"""Writes: what an op of a captured graph writes to, and the op that makes the same value anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from autoplan.cleanup.places import at
from autoplan.cleanup.simplify import is_dropout_off
from autoplan.errors import CaptureError

aten = torch.ops.aten

_RESHAPES = (
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze alias contiguous view_as "
    "dropout feature_dropout alpha_dropout feature_alpha_dropout reshape_as detach to "
    "_to_copy lift_fresh expand_as autoplan::hint "
)
_RESIZES = (
    "set_ resize_ resize_as_ squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_ as_strided_ "
)

RESHAPES = frozenset(_RESHAPES.split())
"""Views whose inverse is a reshape: they keep every element, in row-major order."""

RESIZES = frozenset(_RESIZES.split())
"""Writes that change the shape of what they write to."""


def written_by(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node writes to."""
    if updates_statistics(node):
        return [each for each in node.args[3:5] if isinstance(each, fx.Node)]
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return []
    result = []
    for number, argument in enumerate(target._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name)
        if not isinstance(given, fx.Node):
            raise CaptureError(
                f"{target} writes to a list of tensors{at(node)}; write the out-of-place form."
            )
        result.append(given)
    return result


def updates_statistics(node: fx.Node) -> bool:
    """Batch norm in train mode writes running statistics, which its schema does not say."""
    return (
        node.target == aten.batch_norm.default
        and bool(node.args[5])
        and isinstance(node.args[3], fx.Node)
    )


def storages_of(graph: fx.Graph) -> dict[fx.Node, int]:
    """The memory that each node's value lies in, by the number of a storage; 0 for no tensor."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            value = next((each for each in value if isinstance(each, torch.Tensor)), None)
        found[node] = 0
        if isinstance(value, torch.Tensor):
            found[node] = int(value.untyped_storage()._cdata)
    # Dropout that is off returns its argument, but is traced as if it made a new tensor.
    leader: dict[int, int] = {}
    for node in graph.nodes:
        if is_dropout_off(node):
            leader[found[node]] = leader.get(found[node.args[0]], found[node.args[0]])
    return {node: leader.get(storage, storage) for node, storage in found.items()}


def with_gradients(
    graph: fx.Graph, kinds: Mapping[str, tuple[str, str]], wanted: Collection[str]
) -> set[fx.Node]:
    """The nodes through which a gradient may flow to a parameter, or to an input in `wanted`."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        value = value[0] if isinstance(value, (tuple, list)) and value else value
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        parameter = kinds.get(node.name, ("", ""))[0] == "parameter" or node.name in wanted
        reached = any(each in found for each in node.all_input_nodes)
        if floating and node.target != aten.detach.default and (parameter or reached):
            found.add(node)
    return found


def is_pointwise(target: Any) -> bool:
    return torch.Tag.pointwise in target.tags


def like(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def functional_twin(overload: Any) -> Any:
    """The functional form of an op that writes: `pow_.Scalar` -> `pow.Tensor_Scalar`.

    It takes the same arguments, in the same order; None where there is none.
    """
    packet = overload._schema.name.removeprefix("aten::")
    if packet == "normal_":
        return aten.normal_functional.default
    if packet.startswith("__i"):
        packet = f"__{packet[3:]}"
    elif packet.endswith("_"):
        packet = packet[:-1]
    functional = getattr(aten, packet, None)
    names = functional.overloads() if functional is not None else []
    wanted = _argument_types(overload)
    for name in sorted(names, key=lambda each: each != overload._overloadname):
        twin = getattr(functional, name)
        if not twin._schema.is_mutable and _argument_types(twin) == wanted:
            return twin
    return None


def _argument_types(overload: Any) -> list[str]:
    return [str(each.type) for each in overload._schema.arguments if not each.is_out]


def dimension_order(
    name: str, args: list[Any], kwargs: Mapping[str, Any], ndim: int
) -> list[int] | None:
    """The order in which a permuting view takes its source's dimensions."""
    order = list(range(ndim))
    if name in ("transpose", "swapaxes", "swapdims"):
        first, second = args[1] % ndim, args[2] % ndim
        order[first], order[second] = order[second], order[first]
    elif name in ("t", "numpy_T"):
        order.reverse()
    elif name in ("mT", "adjoint", "mH"):
        order[-2], order[-1] = order[-1], order[-2]
    elif name == "permute":
        order = [dim % ndim for dim in args[1]]
    else:
        return None
    return order
