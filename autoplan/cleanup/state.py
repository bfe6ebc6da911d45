"""Parameters, buffers and in-place ops: every value is made once and never changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from autoplan.cleanup.places import at
from autoplan.errors import CaptureError

aten = torch.ops.aten


def share_tied_parameters(
    graph: fx.Graph, model: nn.Module, kinds: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Let every use of a tied parameter read the path it appears under first; by identity."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), path)
        if kept != path:
            aliases[path] = kept
    placeholders = {
        kinds[node.name][1]: node
        for node in graph.find_nodes(op="placeholder")
        if kinds.get(node.name, ("", ""))[0] == "parameter"
    }
    for path, kept in aliases.items():
        if path in placeholders and kept in placeholders:
            placeholders[path].replace_all_uses_with(placeholders[kept])
    return aliases


def functionalize(graph: fx.Graph, kinds: Mapping[str, tuple[str, str]]) -> None:
    """Replace in-place ops on fresh values by their functional twins."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        packet = node.target._schema.name.removeprefix("aten::")
        if not packet.endswith("_") or packet.endswith("__") or not node.target._schema.is_mutable:
            continue
        written = node.args[0]
        twin = getattr(getattr(aten, packet[:-1], None), node.target._overloadname, None)
        base = written
        while isinstance(base, fx.Node) and _is_view(base):
            base = base.args[0]
        if (
            twin is None
            or base is not written
            or (isinstance(written, fx.Node) and any(_is_view(user) for user in written.users))
        ):
            raise CaptureError(
                f"in-place {node.target} on a view cannot be captured{at(node)}; "
                f"write the out-of-place form."
            )
        if written.op == "placeholder" and packet != "detach_":
            if kinds.get(written.name, ("", ""))[0] == "buffer":
                raise CaptureError(
                    f"buffer {kinds[written.name][1]!r} is changed in place{at(node)}; models with "
                    "mutated buffers are not planned yet: use model.eval() or a layer without them."
                )
            raise CaptureError(f"{written.name} is changed in place{at(node)}; copy it first.")
        node.target = twin
        node = _keep_type(graph, node, written)
        written.replace_all_uses_with(node, delete_user_cb=lambda u, n=node: _after(u, n))


def _keep_type(graph: fx.Graph, node: fx.Node, written: fx.Node) -> fx.Node:
    """In place the result has the type of what was written to; out of place types promote."""
    value = written.meta["val"]
    others = [each.meta["val"] for each in node.all_input_nodes]
    natural = value.dtype
    for each in others:
        natural = (
            torch.promote_types(natural, each.dtype) if each.ndim or not value.ndim else natural
        )
    if natural == value.dtype:
        return node
    with graph.inserting_after(node):
        cast = graph.call_function(torch.ops.aten.to.dtype, (node, value.dtype))
    cast.meta.update(node.meta)
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    node.meta["val"] = torch.empty(node.meta["val"].shape, dtype=natural, device="meta")
    return cast


def _is_view(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and any(
        a.alias_info is not None and not a.alias_info.is_write for a in target._schema.arguments
    )


def _after(user: fx.Node, node: fx.Node) -> bool:
    return user is not node and node < user
