"""Functionalise: every value is made once and never changed.

An op that writes becomes its functional twin; what it wrote through a view is scattered back into
the tensor that the view is of, and later readers of that tensor, or of other views of it, read the
new value. Which nodes share memory is read off the storages of their fake tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from autoplan.cleanup.pins import HINT
from autoplan.cleanup.places import at
from autoplan.cleanup.writes import (
    RESHAPES,
    RESIZES,
    dimension_order,
    functional_twin,
    is_pointwise,
    like,
    storages_of,
    updates_statistics,
    with_gradients,
    written_by,
)
from autoplan.errors import CaptureError

aten = torch.ops.aten


def functionalize(
    graph: fx.Graph, kinds: Mapping[str, tuple[str, str]], wanted: Collection[str] = ()
) -> dict[str, fx.Node]:
    """Replace ops that write by functional ones; the last value of every buffer written, by path.

    `kinds` tells parameters, buffers and inputs among the placeholders; a gradient is asked of the
    inputs in `wanted`. Raises CaptureError where
    an argument or a parameter of the model is written to.
    """
    if not any(written_by(node) for node in graph.nodes if node.op == "call_function"):
        return {}
    return _Functionalizer(graph, kinds, wanted).run()


class _Functionalizer:
    """Walks the graph once; holds the version of every storage that is written to."""

    def __init__(
        self,
        graph: fx.Graph,
        kinds: Mapping[str, tuple[str, str]],
        wanted: Collection[str],
    ) -> None:
        self.graph = graph
        self.kinds = kinds
        self.storages = storages_of(graph)
        self.version = {
            self.storages[each]: 0
            for node in graph.nodes
            if node.op == "call_function"
            for each in written_by(node)
        }
        self.roots: dict[int, fx.Node] = {}
        self.parent: dict[fx.Node, fx.Node] = {}
        """View -> the node it is a view of; for the result of a write, what was written to."""
        self.values: dict[fx.Node, tuple[int, fx.Node]] = {}
        """Node -> version of its storage, and the node that holds its value then."""
        self.same: set[fx.Node] = set()
        """Results of writes: the very tensor that was written to."""
        self.written_as: dict[fx.Node, tuple[Any, Any]] = {}
        """Arguments of views as the model wrote them."""
        self.flowing = with_gradients(graph, kinds, wanted)
        self.lost: dict[int, fx.Node] = {}
        """Storage -> the write through `detach()` that changed it."""
        self.updates: dict[str, fx.Node] = {}
        self.here: fx.Node | None = None

    def run(self) -> dict[str, fx.Node]:
        for node in list(self.graph.nodes):
            self.here = node
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                node.args = fx.node.map_arg(node.args, self._value)
            elif node.op == "call_function":
                self._visit(node)
        for storage, root in self.roots.items():
            kind, path = self.kinds.get(root.name, ("", ""))
            if root.op == "placeholder" and kind == "buffer" and self.version[storage]:
                value = self._value(root)
                if value.meta["val"].is_floating_point():
                    value = self._add(aten.detach.default, (value,), {}, value)
                self.updates[path] = value
        kept = set(self.updates.values())
        for node in reversed(list(self.graph.nodes)):
            if node.op != "call_function" or node.users or node in kept or node.target == HINT:
                continue
            if node in self.same or (self._tracked(node) and not _is_random(node)):
                self.graph.erase_node(node)
        return self.updates

    def _placeholder(self, node: fx.Node) -> None:
        """A buffer that the model has under several paths is one."""
        first = self.roots.get(self.storages[node]) if self._tracked(node) else None
        self._see(node)
        if first is not None:
            self.parent[node] = first
            self.same.add(node)
            self.values[node] = self.values[first]

    def _tracked(self, node: fx.Node) -> bool:
        """Whether something writes to the memory of `node`."""
        return self.storages.get(node, 0) in self.version

    def _see(self, node: fx.Node) -> None:
        if self._tracked(node):
            storage = self.storages[node]
            self.roots.setdefault(storage, node)
            self.values[node] = (self.version[storage], node)

    def _visit(self, node: fx.Node) -> None:
        if node.target == aten.detach_.default:
            node.target = aten.detach.default
        if updates_statistics(node):
            self._batch_norm(node)
            return
        targets = written_by(node)
        if targets:
            self._write(node, targets)
            return
        if self._tracked(node):
            for source in node.all_input_nodes:
                # A result of several (topk's) is no view; a piece of a split tensor is.
                produced = node.target is operator.getitem and source not in self.parent
                if self.storages.get(source) == self.storages[node] and not produced:
                    self.parent[node] = source
                    self.written_as[node] = node.args, node.kwargs
                    break
        node.args = fx.node.map_arg(node.args, self._value)
        node.kwargs = fx.node.map_arg(node.kwargs, self._value)
        self._see(node)

    # -- reading ----------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> fx.Node:
        """The node that holds the value of `node` at this point of the program."""
        if node not in self.values:
            return node
        storage = self.storages[node]
        version, value = self.values[node]
        if version == self.version[storage]:
            return value
        if node not in self.parent:
            raise CaptureError(
                f"a value is changed in place through detach(){at(self.lost[storage])}, and read "
                "afterwards; write the out-of-place form."
            )
        if node in self.same:
            value = self._value(self.parent[node])
        else:
            args, kwargs = self.written_as[node]
            args = fx.node.map_arg(args, self._value)
            value = self._add(node.target, args, fx.node.map_arg(kwargs, self._value), node)
        self.values[node] = (self.version[storage], value)
        return value

    def _add(
        self, target: Any, args: Any, kwargs: Any, like: fx.Node, value: Any = None
    ) -> fx.Node:
        assert self.here is not None
        with self.graph.inserting_before(self.here):
            node = self.graph.call_function(target, args, kwargs)
        node.meta.update(like.meta)
        if value is not None:
            node.meta["val"] = value
        return node

    # -- writing ----------------------------------------------------------------------------

    def _write(self, node: fx.Node, targets: list[fx.Node]) -> None:
        if len(targets) > 1:
            raise CaptureError(
                f"{node.target} writes to several tensors{at(node)}; write the out-of-place form."
            )
        written = targets[0]
        args, kwargs = list(node.args), dict(node.kwargs)
        overload: Any = node.target
        for argument in overload._schema.arguments:
            if argument.is_out:
                kwargs.pop(argument.name, None)
        value = self._functional(node, written, args, kwargs)
        self._store(node, written, value)
        self.parent[node] = written
        self.same.add(node)
        self.storages[node] = self.storages[written]
        self.values[node] = self.values[written]

    def _functional(
        self, node: fx.Node, written: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> fx.Node:
        """What a write makes of the tensor it writes to, in its shape and type."""
        overload: Any = node.target
        packet = overload._schema.name.removeprefix("aten::")
        before = written.meta["val"]
        given = [fx.node.map_arg(each, self._value) for each in args]
        named = {k: fx.node.map_arg(each, self._value) for k, each in kwargs.items()}
        if packet in RESIZES:
            raise CaptureError(
                f"{overload} changes the shape of a tensor in place{at(node)}; write the "
                "out-of-place form."
            )
        if packet == "copy_":
            return self._fitted(given[1], written, node)
        if packet in ("zero_", "fill_"):
            number = 0 if packet == "zero_" else given[1]
            if isinstance(number, fx.Node):
                return self._fitted(number, written, node)
            return self._add(aten.full_like.default, (given[0], number), {}, node, like(before))
        twin = functional_twin(overload)
        if twin is None:
            raise CaptureError(
                f"in-place {overload} has no out-of-place form{at(node)}; write the model without "
                "it."
            )
        result = self._add(twin, tuple(given), named, node, like(before))
        # In place the result has the type of what was written to; out of place types promote.
        promoted = before.dtype
        for each in result.all_input_nodes:
            other = each.meta["val"]
            if isinstance(other, torch.Tensor) and (other.ndim or not before.ndim):
                promoted = torch.promote_types(promoted, other.dtype)
        if is_pointwise(twin) and promoted != before.dtype:
            result.meta["val"] = torch.empty(before.shape, dtype=promoted, device="meta")
            result = self._add(aten.to.dtype, (result, before.dtype), {}, node, like(before))
        return result

    def _fitted(self, value: Any, written: fx.Node, node: fx.Node) -> fx.Node:
        """`value` in the type and shape of what it is copied into."""
        before = written.meta["val"]
        if value.meta["val"].dtype != before.dtype:
            shape = value.meta["val"].shape
            cast = torch.empty(shape, dtype=before.dtype, device="meta")
            value = self._add(aten.to.dtype, (value, before.dtype), {}, node, cast)
        if value.meta["val"].shape != before.shape:
            shape = list(before.shape)
            value = self._add(aten.expand.default, (value, shape), {}, node, like(before))
        return value  # type: ignore[no-any-return]

    def _store(self, node: fx.Node, written: fx.Node, value: fx.Node) -> None:
        """Let `written` have a new value, and all that it is a view of."""
        storage, root = self.storages[written], written
        while root in self.parent:
            root = self.parent[root]
        self._refuse_foreign(node, root)
        chain = [(written, value)]
        while written in self.parent:
            source = self.parent[written]
            if written.target == aten.detach.default and source in self.flowing:
                if written.meta.get("region"):
                    raise CaptureError(
                        f"a value is changed in place where no gradient is recorded{at(node)}; "
                        "write the out-of-place form."
                    )
                self.lost[storage] = node
                break
            if written.target is operator.getitem:
                source = self.parent[source]
                value = self._scattered_piece(node, written, source, value)
            elif written not in self.same:
                value = self._scattered(node, written, source, value)
            chain.append((source, value))
            written = source
        self.version[storage] += 1
        for each, new in chain:
            self.values[each] = (self.version[storage], new)

    def _refuse_foreign(self, node: fx.Node, root: fx.Node) -> None:
        if root.op != "placeholder":
            return
        kind, path = self.kinds.get(root.name, ("", ""))
        if kind == "parameter":
            raise CaptureError(
                f"parameter {path!r} is changed in place{at(node)}; a plan trains parameters by an "
                "optimizer alone: make it a buffer, or change it outside the model."
            )
        if kind == "constant":
            raise CaptureError(
                f"tensor {path!r}, a plain attribute of the model, is changed in place{at(node)}; "
                "register it as a buffer."
            )
        if kind == "input":
            raise CaptureError(f"argument {path!r} is changed in place{at(node)}; copy it first.")

    def _scattered(self, node: fx.Node, view: fx.Node, source: fx.Node, value: fx.Node) -> fx.Node:
        """What `source` becomes when its `view` becomes `value`."""
        whole = self._value(source)
        target: Any = view.target
        name = target._schema.name.removeprefix("aten::")
        old = source.meta["val"]
        args = list(view.args)
        kwargs = dict(view.kwargs)
        if name in ("slice", "select"):
            twin = aten.slice_scatter.default if name == "slice" else aten.select_scatter.default
            return self._add(twin, (whole, value, *args[1:]), kwargs, node, like(old))
        if name in RESHAPES and view.meta["val"].numel() == old.numel():
            if view.meta["val"].shape == old.shape:
                return value
            return self._add(aten.reshape.default, (value, list(old.shape)), {}, node, like(old))
        order = dimension_order(name, args, kwargs, old.ndim)
        if order is not None:
            back = [order.index(dim) for dim in range(old.ndim)]
            return self._add(aten.permute.default, (value, back), {}, node, like(old))
        if name == "diagonal":
            twin = aten.diagonal_scatter.default
            return self._add(twin, (whole, value, *args[1:]), kwargs, node, like(old))
        raise CaptureError(
            f"{node.target} writes through {target}{at(node)}, which cannot be captured; write the "
            "out-of-place form."
        )

    def _scattered_piece(
        self, node: fx.Node, piece: fx.Node, source: fx.Node, value: fx.Node
    ) -> fx.Node:
        """What `source`, which was cut into pieces, becomes when its `piece` becomes `value`."""
        pieces: Any = piece.args[0]
        number: Any = piece.args[1]
        whole, old = self._value(source), like(source.meta["val"])
        name = str(pieces.target).split(".")[1]
        place = 1 if name == "unbind" else 2
        given = pieces.args[place] if len(pieces.args) > place else pieces.kwargs.get("dim", 0)
        if name == "unbind":
            args = (whole, value, given, number)
            return self._add(aten.select_scatter.default, args, {}, node, old)
        cuts = pieces.meta["val"]
        start = sum(each.shape[given] for each in cuts[:number])
        place_args = (whole, value, given, start, start + cuts[number].shape[given])
        return self._add(aten.slice_scatter.default, place_args, {}, node, old)

    # -- batch norm -------------------------------------------------------------------------

    def _batch_norm(self, node: fx.Node) -> None:
        """Train-mode batch norm as a function that also returns the new running statistics."""
        args: Any = fx.node.map_arg(node.args, self._value)
        x, weight, bias, mean, variance, _, momentum, epsilon = args[:8]
        y = node.meta["val"]
        statistic = torch.empty(mean.meta["val"].shape, dtype=y.dtype, device="meta")
        values = (y, statistic, statistic, like(mean.meta["val"]), like(variance.meta["val"]))
        functional = self._add(
            aten._native_batch_norm_legit_functional.default,
            (x, weight, bias, mean, variance, True, momentum, epsilon),
            {},
            node,
            values,
        )
        pieces = {
            number: self._add(operator.getitem, (functional, number), {}, node, values[number])
            for number in (0, 3, 4)
        }
        node.replace_all_uses_with(pieces[0])
        self.storages[pieces[0]] = self.storages[node]
        self._see(pieces[0])
        for number in (3, 4):
            written: Any = node.args[number]
            value = self._add(aten.detach.default, (pieces[number],), {}, node, values[number])
            self._store(node, written, value)
        self.graph.erase_node(node)


def _is_random(node: fx.Node) -> bool:
    """Whether it draws numbers: then it counts among those that do, whether read or not."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
