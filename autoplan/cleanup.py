"""Clean-up passes on a captured graph: each removes one thing that says nothing about the model.

Every pass edits the graph in place during capture only; afterwards the graph is read-only.
"""

from __future__ import annotations

import operator
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import py_sym_types

from autoplan.errors import CaptureError

aten = torch.ops.aten
_ASSERTS = ("_assert", "sym_constrain", "_guards", "assert_async")


_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    sysconfig.get_path("stdlib"),
    "<",
)


def user_frame(error: BaseException) -> str | None:
    """File and line of the innermost frame outside torch and autoplan, for an error message."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def inline_regions(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Replace `wrap_with_set_grad_enabled` and `wrap_with_autocast` regions by their contents."""
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", str(node.target))
        if node.op != "call_function" or not name.startswith("wrap_with_"):
            continue
        if name == "wrap_with_set_grad_enabled":
            without_grad = not node.args[0]
            region, operands = node.args[1], node.args[2:]
        else:
            if node.args[2]:
                raise CaptureError(
                    "torch.autocast inside the model cannot be planned; cast the model instead, "
                    "e.g. model.to(torch.bfloat16)."
                )
            without_grad, region, operands = False, node.args[4], node.args[5:]
        inner = getattr(module, region.target)
        inline_regions(inner.graph, inner)
        body = inner.graph
        with graph.inserting_before(node):
            if without_grad:
                operands = tuple(_detached(graph, each) for each in operands)
            results = _copy_into(graph, body, operands)
        _replace_by_results(graph, node, results)
    for node in list(graph.find_nodes(op="get_attr")):
        if not node.users:
            graph.erase_node(node)


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    if not value.meta["val"].is_floating_point():
        return value
    node = graph.call_function(aten.detach.default, (value,))
    node.meta.update(value.meta)
    return node


def _copy_into(graph: fx.Graph, body: fx.Graph, operands: tuple[Any, ...]) -> Any:
    mapping: dict[fx.Node, Any] = dict(
        zip(body.find_nodes(op="placeholder"), operands, strict=True)
    )
    for node in body.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: mapping[n])
        if node.op != "placeholder":
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    raise CaptureError("a captured region has no output.")


def _replace_by_results(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    if isinstance(results, (tuple, list)):
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)
    graph.erase_node(node)


def drop_asserts(graph: fx.Graph) -> None:
    """Remove metadata and value assertions: shapes are fixed once captured."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and any(word in str(node.target) for word in _ASSERTS):
            graph.erase_node(node)


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
                f"in-place {node.target} on a view cannot be captured{_at(node)}; "
                f"write the out-of-place form."
            )
        if written.op == "placeholder":
            if kinds.get(written.name, ("", ""))[0] == "buffer":
                raise CaptureError(
                    f"buffer {kinds[written.name][1]!r} is changed in place{_at(node)}; models with "
                    "mutated buffers are not planned yet: use model.eval() or a layer without them."
                )
            raise CaptureError(f"{written.name} is changed in place{_at(node)}; copy it first.")
        node.target = twin
        written.replace_all_uses_with(node, delete_user_cb=lambda u, n=node: _after(u, n))


def _is_view(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and any(
        a.alias_info is not None and not a.alias_info.is_write for a in target._schema.arguments
    )


def _after(user: fx.Node, node: fx.Node) -> bool:
    return user is not node and node < user


def _at(node: fx.Node) -> str:
    source = source_line(node)
    return f" at {source}" if source else ""


def source_line(node: fx.Node) -> str:
    """`file:line in function: code` of the user's statement that made `node`."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(lines) < 2:
        return ""
    place = lines[-2].strip().replace('File "', "").replace('", line ', ":")
    return f"{place}: {lines[-1].strip()}"


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made `node`, e.g. `transformer.h.0.mlp.c_fc`."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        return str(path)
    return ""


def annotate_paths(graph: fx.Graph) -> None:
    """Note module path and source line on every node, under short names."""
    for node in graph.nodes:
        node.meta["path"] = module_path(node)
        node.meta["source"] = source_line(node)


def fold_constants(graph: fx.Graph) -> dict[str, torch.Tensor]:
    """Compute what depends on no input, parameter or buffer; keep the results as placeholders.

    Dimensions along which a result only repeats are stored once and expanded.
    """
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "call_function" and _is_constant(node, values):
            values[node] = _evaluate(node, values)
    constants: dict[str, torch.Tensor] = {}
    first = next(iter(graph.nodes))
    for node, value in values.items():
        if all(user in values for user in node.users):
            continue
        if not isinstance(value, torch.Tensor):
            node.replace_all_uses_with(value)
            continue
        narrow = _without_repetition(value)
        with graph.inserting_before(first):
            stored = graph.placeholder(f"constant_{node.name}")
        constants[stored.name] = narrow.contiguous()
        stored.meta["val"] = _like(node.meta["val"], narrow)
        stored.meta["path"], stored.meta["source"] = node.meta["path"], node.meta["source"]
        with graph.inserting_before(node):
            whole = stored
            if narrow.shape != value.shape:
                whole = graph.call_function(aten.expand.default, (stored, list(value.shape)))
                whole.meta.update(node.meta)
        node.replace_all_uses_with(whole)
    for node in reversed(list(values)):
        if not node.users:
            graph.erase_node(node)
    return constants


def _like(fake: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _is_constant(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
            return False
    elif target is not operator.getitem:
        return False
    value = node.meta.get("val")
    if isinstance(value, py_sym_types):
        return False
    return all(each in values for each in node.all_input_nodes)


def _evaluate(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """The node's value on the CPU; pointwise ops compute repeated dimensions once."""

    def value_of(each: fx.Node) -> Any:
        return values[each]

    args = fx.node.map_arg(node.args, value_of)
    kwargs = dict(fx.node.map_arg(node.kwargs, value_of))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    assert callable(node.target)
    pointwise = isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.pointwise in node.target.tags or "to.dtype" in str(node.target)
    )
    if pointwise:
        whole = torch.broadcast_shapes(*(a.shape for a in args if isinstance(a, torch.Tensor)))
        args = tuple(_without_repetition(a) if isinstance(a, torch.Tensor) else a for a in args)
        return node.target(*args, **kwargs).expand(whole)
    result = node.target(*args, **kwargs)
    if isinstance(result, torch.Tensor) and result.numel() < 1 << 22:
        result = _without_repetition(result, compare=True).expand(result.shape)
    return result


def _without_repetition(value: torch.Tensor, compare: bool = False) -> torch.Tensor:
    """Narrow dimensions of stride zero, or (`compare`) of equal contents, to size one."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            one = value.narrow(dim, 0, 1)
            if value.stride(dim) == 0 or (compare and bool((value == one).all())):
                value = one
    return value


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def compute_in_double(graph: fx.Graph) -> None:
    """Let every floating tensor be float64: casts to lower precision become casts to float64.

    A float64 model means float64; that some of its code says `.float()` is no wish for rounding.
    """
    for node in graph.nodes:
        if node.op == "call_function":
            node.args = tuple(torch.float64 if _is_low(a) else a for a in node.args)
            node.kwargs = {k: torch.float64 if _is_low(a) else a for k, a in node.kwargs.items()}
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            node.meta["val"] = type(value)(_doubled(each) for each in value)
        elif isinstance(value, torch.Tensor):
            node.meta["val"] = _doubled(value)


def _is_low(argument: Any) -> bool:
    return isinstance(argument, torch.dtype) and argument in _FLOATS


def _doubled(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _FLOATS:
        return torch.empty(value.shape, dtype=torch.float64, device="meta")
    return value


def refuse_dynamic_shapes(graph: fx.Graph) -> None:
    """Raise CaptureError at the first op whose shape depends on data."""
    for node in graph.nodes:
        value = node.meta.get("val")
        for each in value if isinstance(value, (tuple, list)) else (value,):
            sizes = each.shape if isinstance(each, torch.Tensor) else (each,)
            if any(isinstance(size, py_sym_types) for size in sizes):
                raise CaptureError(
                    f"the shape of {node.target} depends on data{_at(node)}; a plan needs fixed "
                    "shapes: use a mask, torch.where, or compute it outside the model."
                )


def drop_no_ops(graph: fx.Graph, aliases_only: bool = False) -> None:
    """Remove ops that return their input: aliases, casts to the same type, dropout that is off.

    `aliases_only` keeps `contiguous`, which may copy: before in-place ops are functionalised.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.broadcast_tensors.default":
            _drop_broadcast(graph, node)
            continue
        if node.op != "call_function" or not _is_no_op(node):
            continue
        if aliases_only and str(node.target) == "aten.contiguous.default":
            continue
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


def _drop_broadcast(graph: fx.Graph, node: fx.Node) -> None:
    """`broadcast_tensors` of equal shapes, which losses call first, returns its operands."""
    operands: Any = node.args[0]
    if len({tuple(each.meta["val"].shape) for each in operands}) > 1:
        return
    for user in list(node.users):
        user.replace_all_uses_with(operands[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _is_no_op(node: fx.Node) -> bool:
    name = str(node.target)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
        return False
    before, after = source.meta["val"], node.meta.get("val")
    if not isinstance(after, torch.Tensor):
        return False
    same = before.shape == after.shape and before.dtype == after.dtype
    if name in ("aten.alias.default", "aten.contiguous.default", "aten.lift_fresh_copy.default"):
        return True
    if name.startswith(("aten.to.", "aten._to_copy.")):
        return same
    if name.split(".")[1] in (
        "expand",
        "view",
        "reshape",
        "slice",
        "squeeze",
        "_unsafe_view",
        "flatten",
    ):
        return same
    if name in ("aten.dropout.default", "aten.feature_dropout.default"):
        return not node.args[1] or not node.args[2]
    return False


def use_causal_flag(graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> None:
    """A constant lower-triangular attention mask becomes `is_causal=True`: fewer bytes, same result."""
    for node in graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        mask, base = given.get("attn_mask"), given.get("attn_mask")
        if mask is None or given.get("is_causal"):
            continue
        while base.op == "call_function" and base.target in (
            aten.expand.default,
            aten.alias.default,
        ):
            base = base.args[0]
        value = constants.get(base.name)
        query, key = given["query"].meta["val"], given["key"].meta["val"]
        if value is None or value.dtype != torch.bool or query.shape[-2] != key.shape[-2]:
            continue
        rows = query.shape[-2]
        if value.numel() != rows * rows or value.shape[-2:] != (rows, rows):
            continue
        if not torch.equal(
            value.reshape(rows, rows), torch.ones(rows, rows, dtype=torch.bool).tril()
        ):
            continue
        kwargs = {k: v for k, v in node.kwargs.items() if k not in names}
        node.args = (
            given["query"],
            given["key"],
            given["value"],
            None,
            given.get("dropout_p", 0.0),
            True,
        )
        node.kwargs = kwargs


def split_fused_projections(graph: fx.Graph) -> None:
    """`split(addmm(b, x, W))` becomes one addmm a piece, with W and b split instead of the result.

    A fused query-key-value projection has no column split that keeps heads together; its pieces
    have. The pieces of W are cut once a step, from whatever layout W is stored in.
    """
    for split in list(graph.find_nodes(op="call_function", target=aten.split.Tensor)):
        reshape, product = None, split.args[0]
        if product.op == "call_function" and product.target in (
            aten.view.default,
            aten.reshape.default,
        ):
            reshape, product = product, product.args[0]
        dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
        value = split.args[0].meta["val"]
        chain = [each for each in (reshape, product) if each is not None]
        if (
            product.op != "call_function"
            or product.target not in (aten.addmm.default, aten.linear.default)
            or any(len(each.users) != 1 for each in chain)
            or dim % value.ndim != value.ndim - 1
            or value.shape[-1] != product.meta["val"].shape[-1]
            or value.shape[-1] % split.args[1]
            or product.kwargs
            or not _bias_is_a_row(product, value.shape[-1])
        ):
            continue
        _split_projection(graph, split, reshape, product)


def _bias_is_a_row(product: fx.Node, width: int) -> bool:
    """Whether the projection has no bias, or one number a column."""
    if product.target == aten.addmm.default:
        bias: Any = product.args[0]
    else:
        bias = product.args[2] if len(product.args) > 2 else None
    return bias is None or tuple(bias.meta["val"].shape) == (width,)


def _split_projection(
    graph: fx.Graph, split: fx.Node, reshape: fx.Node | None, product: fx.Node
) -> None:
    width = split.args[1]
    fused_addmm = product.target == aten.addmm.default
    if fused_addmm:
        bias, x, weight = product.args[:3]
        weight_dim = 1
    else:
        x, weight, *rest = product.args
        bias, weight_dim = (rest[0] if rest else None), 0
    pieces = split.meta["val"]

    def emit(
        target: Any, args: tuple[Any, ...], value: torch.Tensor | list[torch.Tensor]
    ) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta.update(product.meta)
        node.meta["val"] = value
        return node

    def cut(source: fx.Node, dim: int) -> list[fx.Node]:
        values = list(torch.split(source.meta["val"], width, dim))
        whole = emit(aten.split.Tensor, (source, width, dim), values)
        return [emit(operator.getitem, (whole, i), value) for i, value in enumerate(values)]

    with graph.inserting_before(product):
        weights = cut(weight, weight_dim)
        biases = cut(bias, 0) if bias is not None else [None] * len(weights)
        outputs = []
        for part, addend, piece in zip(weights, biases, pieces, strict=True):
            shape = (*product.meta["val"].shape[:-1], width)
            value = torch.empty(shape, dtype=piece.dtype, device="meta")
            if fused_addmm:
                out = emit(aten.addmm.default, (addend, x, part), value)
            else:
                out = emit(aten.linear.default, (x, part, *([addend] if addend else [])), value)
            if reshape is not None:
                out = emit(aten.reshape.default, (out, list(piece.shape)), piece)
            outputs.append(out)
    for user in list(split.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        graph.erase_node(user)
    for node in (split, reshape, product):
        if node is not None:
            graph.erase_node(node)


def forget_devices(graph: fx.Graph) -> None:
    """Casts keep their type and lose their device: a program runs where its inputs are."""
    for node in graph.find_nodes(op="call_function", target=aten.to.dtype_layout):
        node.target = aten.to.dtype
        node.args, node.kwargs = (node.args[0], node.kwargs["dtype"]), {}


def drop_unused(
    graph: fx.Graph, kinds: Mapping[str, tuple[str, str]], aliases: Mapping[str, str]
) -> None:
    """Remove dead code, and placeholders that nothing reads; parameters and arguments stay."""
    for node in reversed(list(graph.nodes)):
        kind, path = kinds.get(node.name, ("constant", ""))
        kept = node.op in ("placeholder", "output") and kind in ("parameter", "input")
        if not node.users and node.op != "output" and (not kept or path in aliases):
            graph.erase_node(node)


def mark_gradients(
    graph: fx.Graph,
    kinds: Mapping[str, tuple[str, str]],
    frozen: Iterable[str],
    wanted: Iterable[str],
    training: bool,
) -> None:
    """Note on every node whether a gradient flows through it.

    From parameters that are not `frozen`, and from the arguments whose placeholders are `wanted`.
    """
    frozen, wanted = set(frozen), set(wanted)
    for node in graph.nodes:
        flows = False
        if training and node.op == "placeholder":
            kind, path = kinds.get(node.name, ("constant", ""))
            flows = (kind == "parameter" and path not in frozen) or node.name in wanted
        elif training and node.op == "call_function" and node.target != aten.detach.default:
            flows = any(each.meta.get("requires_grad") for each in node.all_input_nodes)
        value = node.meta.get("val")
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        floating = isinstance(first, torch.Tensor) and (
            first.is_floating_point() or first.is_complex()
        )
        node.meta["requires_grad"] = flows and floating
