"""Sites: the decisions of a plan, and how a graph node is seen as one."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import fx

from autoplan.capture import Captured
from autoplan.hints import Hint
from autoplan.layouts import Layout, Split
from autoplan.mesh import Mesh
from autoplan.policies import POLICY_TEXTS, Policy
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import Arg, OpCall, Rule, TensorMeta

SiteKind = Literal["parameter", "input", "buffer", "constant", "received", "op", "box", "sent"]


@dataclass(frozen=True)
class Candidate:
    """One choice of a site: a layout for every tensor that it reads and writes.

    `labels` name the signature on each axis. `storage` is a parameter's layout between steps, its
    output the layout in which the step reads it, and `policy` when the one is made of the other.
    A boxing site behind a parameter has its storage and policy, too, where that is not "step".
    """

    labels: tuple[str, ...]
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    storage: Layout | None = None
    policy: Policy = "step"

    def __str__(self) -> str:
        if self.storage is not None:
            return f"{self.storage} -> {self.outputs[0]}{POLICY_TEXTS[self.policy]}"
        return " | ".join(self.labels)

    @property
    def carried(self) -> Layout:
        """How a parameter lies when the prologue gives it to the body, which gathers the rest.

        Axes that only add up gradients, or cut, do so once a step.
        """
        read = self.outputs[0]
        if self.policy == "step" or self.storage is None:
            return read
        pairs = zip(self.storage, read, strict=True)
        return Layout(stored if isinstance(stored, Split) else used for stored, used in pairs)

    @property
    def policies(self) -> tuple[str, ...]:
        """By axis: the policy where the body gathers, "step" elsewhere."""
        pairs = zip(self.carried, self.outputs[0], strict=True)
        return tuple("step" if carried == read else self.policy for carried, read in pairs)


@dataclass(frozen=True)
class Source:
    """The tensor that a site reads: output `output` of site `site`."""

    site: int
    output: int = 0


@dataclass(frozen=True)
class Site:
    """One decision. `name` is the graph node's; a boxing site is named `NODE:OUTPUT`.

    What a pipeline stage receives and what it sends (`NODE:sent`) lie as both ends agreed on.
    """

    name: str
    kind: SiteKind
    path: str
    source_line: str
    inputs: tuple[Source, ...]
    outputs: tuple[TensorMeta, ...]
    candidates: tuple[Candidate, ...]
    call: OpCall | None = None
    rule: Rule | None = None
    bound: Bound | None = None
    parameter_only: bool = False
    """Depends on parameters (and constants) alone: runs once a step, in the prologue."""
    kept: bool = False
    """Of a view of a parameter in the body: whether an op keeps it for its backward."""


@dataclass(frozen=True)
class Preference:
    """A wish of a soft hint on one site: what each candidate is charged for breaking it.

    `penalty_s`: seconds, one for each candidate of the site, 0 for those that are as wished. They
    belong into the objective, and are no part of a step's time.
    """

    site: int
    penalty_s: tuple[float, ...]
    hint: Hint


@dataclass(frozen=True)
class Annotated:
    """The captured graph on a mesh, with every site's candidates, in graph order."""

    captured: Captured
    mesh: Mesh
    sites: tuple[Site, ...]
    values: Mapping[tuple[str, int], Source]
    """Graph node and output -> the site that readers read (a boxing site where there is one)."""
    outputs: tuple[Any, ...]
    """Flat outputs of the model: (Source, meta) for tensors, the value itself otherwise."""
    loss: int | None
    """Position of the output that is priced as the loss; None where every output is."""
    notes: tuple[str, ...] = ()
    updates: tuple[tuple[str, Source, TensorMeta], ...] = ()
    """Buffers that a call changes: path, and where the new value comes from."""
    preferences: tuple[Preference, ...] = ()
    """The wishes of soft hints, in the order of sites; several may concern one site."""
    memo: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What passes have worked out about these very sites and candidates, by a name of their own."""

    def penalty_s(self, choices: Sequence[int]) -> float:
        """What `choices` are charged for breaking wishes: seconds that no step takes."""
        return sum(each.penalty_s[choices[each.site]] for each in self.preferences)

    def index(self, name: str) -> int:
        return next(i for i, site in enumerate(self.sites) if site.name == name)


def results_by_module(captured: Captured) -> dict[str, list[fx.Node]]:
    """Nodes of each module whose values leave it: read by another module, or returned.

    New values of buffers go nowhere. One walk over the graph for all modules.
    """
    updates = set(captured.updated_buffers.values()) - set(captured.named_outputs.values())
    results: dict[str, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        within = _modules_around(node)
        shared = len(within)  # modules that hold the node and all of its readers
        for user in node.users:
            if user.op != "output" or node not in updates:
                around = _modules_around(user)
                while within[:shared] != around[:shared]:
                    shared -= 1
        for path in within[shared:]:
            results.setdefault(path, []).append(node)
    return results


def _modules_around(node: fx.Node) -> list[str]:
    """Paths of the modules that the node is in, outermost first."""
    path = str(node.meta.get("path", "")) if node.op == "call_function" else ""
    return list(accumulate(path.split("."), "{}.{}".format)) if path else []


def tensor_of(node: fx.Node) -> tuple[str, int]:
    """The node and output that `node` names: a getitem stands for a piece of its parent."""
    if node.target is not operator.getitem:
        return node.name, 0
    parent, output = node.args
    assert isinstance(parent, fx.Node)
    assert isinstance(output, int)
    return parent.name, output


def describe(node: fx.Node) -> tuple[OpCall, tuple[fx.Node, ...]]:
    """The op call of a node, and the nodes of its tensor arguments in order."""
    operands: list[fx.Node] = []

    def number(each: fx.Node) -> Any:
        operands.append(each)
        return Arg(len(operands) - 1)

    args = fx.node.map_arg(node.args, number)
    kwargs = fx.node.map_arg(node.kwargs, number)
    value = node.meta["val"]
    pieces = value if isinstance(value, (tuple, list)) else (value,)
    grad = bool(node.meta["requires_grad"])
    outputs = tuple(_tensor_meta(each, grad) for each in pieces)
    inputs = tuple(node_meta(each) for each in operands)
    return OpCall(str(node.target), tuple(args), dict(kwargs), inputs, outputs), tuple(operands)


def node_meta(node: fx.Node) -> TensorMeta:
    return _tensor_meta(node.meta["val"], bool(node.meta["requires_grad"]))


def _tensor_meta(value: torch.Tensor, requires_grad: bool) -> TensorMeta:
    floating = value.is_floating_point() or value.is_complex()
    return TensorMeta(tuple(value.shape), value.dtype, requires_grad and floating)
