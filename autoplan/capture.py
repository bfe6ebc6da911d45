"""Capture: a plain model becomes one clean ATen graph, without running it and without its weights.

`torch.export` in training IR keeps linear, layer_norm, attention and cross_entropy as single ops.
The passes of `autoplan.cleanup` then remove what says nothing about the computation.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree  # public use in torch.export's own docs

from autoplan import cleanup
from autoplan.checkpoints import without_checkpoints
from autoplan.errors import CaptureError, HintError
from autoplan.export_errors import explain
from autoplan.hints.inside import marking_hints
from autoplan.refusals import (
    changed_numbers_noted,
    custom_gradients_refused,
    inference_mode_as_no_grad,
    other_random_numbers_refused,
)
from autoplan.strategies.random import RANDOM_OPS, is_random
from autoplan.strategies.rule import OpCall, TensorMeta
from autoplan.structure import structure_of
from autoplan.watched_calls import WatchedCalls

Kind = Literal["parameter", "buffer", "constant", "input", "received"]


@dataclass(frozen=True)
class GraphInput:
    """A placeholder of the captured graph.

    `path` is the parameter's or buffer's name in the model, the argument's name of an input, or the
    module that makes what a pipeline stage receives from the one before it.
    """

    node: str
    kind: Kind
    path: str
    meta: TensorMeta
    position: int = -1
    """Place among the flat arguments of the model; -1 for what is no argument."""


@dataclass(frozen=True)
class Captured:
    """A model as a graph of ATen ops on logical tensors; treat the graph as read-only.

    Nodes carry `meta["val"]` (a fake tensor), `meta["path"]` (module path), `meta["source"]` (file,
    line and code) and `meta["requires_grad"]`.
    """

    graph: fx.Graph
    inputs: tuple[GraphInput, ...]
    constants: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]
    """Path of every tied parameter -> the path it is kept under."""
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    """Flat example arguments: TensorMeta for tensors, the value itself otherwise."""
    notes: tuple[str, ...]
    updates: tuple[str, ...] = ()
    """Paths of the buffers that a call changes; their new values follow the graph's outputs."""
    folded: fx.Graph = field(default_factory=fx.Graph)
    """How constants were computed at capture."""
    pins: tuple[cleanup.PinnedValue, ...] = ()
    """Values that `autoplan.hint` pins inside forward, in the order of the calls."""
    sent: tuple[str, ...] = ()
    """Nodes whose values a pipeline stage passes on, between the outputs and the new buffers."""
    loss_elsewhere: bool = False
    """Whether the loss of the model is another stage's output."""
    beside_loss: frozenset[str] = frozenset()
    """Nodes that a stage receives or sends and the loss does not depend on."""

    @property
    def output_nodes(self) -> tuple[Any, ...]:
        """Flat outputs: nodes, or plain values that do not depend on tensors.

        Of a pipeline stage all outputs of the model, None for those of other stages.
        """
        every: tuple[Any, ...] = tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]
        return every[: len(every) - len(self.updates) - len(self.sent)]

    @property
    def updated_buffers(self) -> dict[str, fx.Node]:
        """The new value of every buffer that a call changes, by path."""
        every: tuple[Any, ...] = tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]
        return dict(zip(self.updates, every[len(every) - len(self.updates) :], strict=True))

    @property
    def named_outputs(self) -> dict[str, fx.Node]:
        """Tensor outputs by name: `output`, or `output.0`, `output.1`, ... of several."""
        nodes = self.output_nodes
        if len(nodes) == 1:
            return {"output": nodes[0]} if isinstance(nodes[0], fx.Node) else {}
        return {f"output.{i}": each for i, each in enumerate(nodes) if isinstance(each, fx.Node)}

    @property
    def loss_position(self) -> int | None:
        """The flat output that is the loss: the one called so, else the first scalar.

        It is differentiable; None where no output is, or where another pipeline stage has it.
        """
        if self.loss_elsewhere:
            return None
        scalars = [
            position
            for position, each in enumerate(self.output_nodes)
            if isinstance(each, fx.Node)
            and each.meta["val"].ndim == 0
            and each.meta["val"].is_floating_point()
            and each.meta.get("requires_grad")
        ]
        try:
            tree = pytree.tree_unflatten(range(len(self.output_nodes)), self.out_spec)
        except Exception:  # a class of the user's own, which takes no numbers
            return min(scalars, default=None)
        named = tree.get("loss") if isinstance(tree, Mapping) else getattr(tree, "loss", None)
        return named if named in scalars else min(scalars, default=None)

    def inputs_of(self, kind: Kind) -> tuple[GraphInput, ...]:
        return tuple(each for each in self.inputs if each.kind == kind)


def capture(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    training: bool = True,
) -> Captured:
    """Capture `model` on example arguments (only their shapes and types matter).

    The model's weights are never read: a model on the meta device works as any other.
    Raises CaptureError, with the model's own file and line where they are known.
    """
    kwargs = {} if kwargs is None else kwargs
    check_arguments(args, kwargs)
    kwargs = dict(kwargs)
    # A copy each time: what forward leaves on the model, such as cached tensors, would be fake.
    model = structure_of(model)
    distinct_args, distinct_kwargs = _distinct((args, kwargs), model)
    notes: list[str] = []
    calls = WatchedCalls()
    with without_key_value_cache(model, training, notes), without_checkpoints(notes), _quiet():
        try:
            with (
                calls,
                custom_gradients_refused(),
                other_random_numbers_refused(model),
                inference_mode_as_no_grad(),
                changed_numbers_noted(model, notes),
                marking_hints(),
                _without_partial_graph(),
            ):
                exported = torch.export.export(model, distinct_args, distinct_kwargs, strict=False)
        except (CaptureError, HintError):
            raise
        except Exception as error:
            raise explain(error, model) from error
    notes += calls.notes
    leaves = pytree.tree_leaves((distinct_args, distinct_kwargs))
    wanted = [isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves]
    return _clean(exported, model, training, wanted, notes)


def check_arguments(args: Any, kwargs: Any) -> None:
    """Raise CaptureError unless these are positional and keyword arguments of a model."""
    if not isinstance(args, (tuple, list)):
        raise CaptureError(
            f"args must be a tuple of the model's positional arguments, got {type(args).__name__}; "
            "write args=(ids,) for a single one."
        )
    if not isinstance(kwargs, Mapping):
        raise CaptureError(
            "kwargs must be a dict of the model's keyword arguments, "
            f"got {type(kwargs).__name__}; write kwargs={{'labels': labels}}."
        )
    for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))):
        if isinstance(leaf, nn.Module):
            raise CaptureError("a module was given among the example arguments; give tensors.")


def _distinct(tree: Any, model: nn.Module) -> Any:
    """Fresh tensors on the model's device: one tensor given twice must not become one input."""
    device = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return torch.empty(
            leaf.shape, dtype=leaf.dtype, device=device, requires_grad=leaf.requires_grad
        )

    return pytree.tree_map(fresh, tree)


@contextlib.contextmanager
def without_key_value_cache(model: nn.Module, training: bool, notes: list[str]) -> Iterator[None]:
    """A training step has no use for a key-value cache, and its class is not a tree of tensors."""
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(each): each for each in found if getattr(each, "use_cache", False)}
    if configs:
        notes.append("use_cache=False: a key-value cache is not part of a planned step")
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export warns about its own internals; none of it concerns the user's model."""
    # They log a failing op with the whole graph before raising; the error says it all.
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    logs = [logging.getLogger(name) for name in names]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


@contextlib.contextmanager
def _without_partial_graph() -> Iterator[None]:
    """A failing export prints its unfinished graph to stderr; all else printed there is kept."""
    printed, unwanted = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except Exception as error:
        if hasattr(error, "partial_fx_graph"):
            unwanted = f"{error.partial_fx_graph}\n"
        raise
    finally:
        text = printed.getvalue()
        sys.stderr.write(text.replace(unwanted, "") if unwanted else text)


_KINDS: dict[InputKind, Kind] = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def _clean(
    exported: torch.export.ExportedProgram,
    model: nn.Module,
    training: bool,
    wanted: Sequence[bool],
    notes: list[str],
) -> Captured:
    graph = exported.graph_module.graph
    signature = exported.graph_signature
    kinds: dict[str, tuple[Kind, str]] = {}
    positions: dict[str, int] = {}
    num_arguments = 0
    for spec in signature.input_specs:
        if hasattr(spec.arg, "name") and spec.kind in _KINDS:
            kinds[spec.arg.name] = (_KINDS[spec.kind], spec.target or spec.arg.name)
        if spec.kind == InputKind.USER_INPUT:
            positions[spec.arg.name] = num_arguments
            num_arguments += 1
    cleanup.inline_regions(graph, exported.graph_module)
    cleanup.drop_asserts(graph)
    aliases = cleanup.share_tied_parameters(graph, model, kinds)
    cleanup.refuse_foreign_calls(graph)
    cleanup.refuse_dynamic_shapes(graph)
    cleanup.write_instance_statistics(graph)
    trained = [name for name, position in positions.items() if wanted[position]]
    updates = cleanup.functionalize(graph, kinds, trained)
    returned = graph.output_node()
    returned.args = ((*returned.args[0], *updates.values()),)
    cleanup.annotate_paths(graph)
    if _is_double(model):
        cleanup.compute_in_double(graph)
    constants, folded = cleanup.fold_constants(graph)
    constants |= {k: v for k, v in exported.constants.items() if isinstance(v, torch.Tensor)}
    if _is_double(model):
        constants = {name: _double(value) for name, value in constants.items()}
    cleanup.refuse_mixed_products(graph)
    cleanup.forget_devices(graph)
    cleanup.drop_no_ops(graph)
    cleanup.separate_recurrent_dropout(graph)
    cleanup.refuse_unkeyed_random(graph, RANDOM_OPS)
    cleanup.use_causal_flag(graph, constants)
    cleanup.write_bags_as_rows(graph, constants)
    cleanup.use_grouped_heads(graph)
    cleanup.split_fused_projections(graph)
    cleanup.state_epsilon(graph)
    taken = cleanup.take_pins(graph)
    cleanup.number_random_ops(graph, _draws)
    cleanup.drop_unused(graph, kinds, aliases, updates)
    pins = cleanup.pins_in_use(graph, taken, notes)
    parameters = dict(model.named_parameters())
    frozen = {path for path, value in parameters.items() if not value.requires_grad}
    cleanup.mark_gradients(graph, kinds, frozen, trained, training)

    inputs = tuple(
        GraphInput(
            node.name,
            kind=kinds.get(node.name, ("constant", ""))[0],
            path=kinds.get(node.name, ("", node.name))[1],
            meta=_meta(node),
            position=positions.get(node.name, -1),
        )
        for node in graph.find_nodes(op="placeholder")
        if isinstance(node.meta.get("val"), torch.Tensor)
    )
    used = {each.path for each in inputs if each.kind == "constant"}
    leaves = tuple(_leaf_meta(leaf) for leaf in pytree.tree_leaves(exported.example_inputs))
    return Captured(
        graph=graph,
        inputs=inputs,
        constants={name: value for name, value in constants.items() if name in used},
        aliases=aliases,
        in_spec=exported.call_spec.in_spec,
        out_spec=exported.call_spec.out_spec,
        leaves=leaves,
        notes=tuple(notes),
        updates=tuple(updates),
        folded=folded,
        pins=pins,
    )


def _draws(node: fx.Node) -> bool:
    return is_random(OpCall(str(node.target), node.args, node.kwargs, (), ()))


def _is_double(model: nn.Module) -> bool:
    floating = [p.dtype for p in model.parameters() if p.dtype.is_floating_point]
    return bool(floating) and all(dtype == torch.float64 for dtype in floating)


def _double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def in_double(captured: Captured) -> Captured:
    """The same graph, node for node, computing in float64: what a proof compares."""
    graph = copy.deepcopy(captured.graph)
    cleanup.compute_in_double(graph)

    def widen(meta: TensorMeta) -> TensorMeta:
        return replace(meta, dtype=torch.float64) if meta.dtype.is_floating_point else meta

    return replace(
        captured,
        graph=graph,
        inputs=tuple(replace(each, meta=widen(each.meta)) for each in captured.inputs),
        constants=constants_in_double(captured),
        leaves=tuple(widen(e) if isinstance(e, TensorMeta) else e for e in captured.leaves),
    )


def constants_in_double(captured: Captured) -> dict[str, torch.Tensor]:
    """The constants as a model in float64 has them: computed in it, not widened from less."""
    folded = copy.deepcopy(captured.folded)
    cleanup.compute_in_double(folded)
    exact = cleanup.recompute(folded, captured.constants)
    return {name: _double(exact.get(name, old)) for name, old in captured.constants.items()}


def _meta(node: fx.Node) -> TensorMeta:
    value = node.meta["val"]
    return TensorMeta(tuple(value.shape), value.dtype, bool(node.meta.get("requires_grad")))


def _leaf_meta(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return TensorMeta(tuple(leaf.shape), leaf.dtype)
    return leaf
