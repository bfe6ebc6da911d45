"""A rule: what index notation and a few facts say about one op; signatures are derived from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from autoplan.layouts import BP, B, Entry, P, Split
from autoplan.strategies.notation import Bound, bind, parse

if TYPE_CHECKING:
    from autoplan.strategies.local import LocalContext


@dataclass(frozen=True)
class TensorMeta:
    """Logical shape and type of one tensor, and whether a gradient flows through it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True)
class Arg:
    """Stands for the `position`-th tensor input in the arguments of an OpCall."""

    position: int


@dataclass(frozen=True)
class OpCall:
    """One call of an op as a rule sees it: literal arguments, and tensors by their meta data."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[TensorMeta, ...]
    outputs: tuple[TensorMeta, ...]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The literal argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def dim(self, position: int, name: str = "dim", default: int = -1) -> int:
        """A dimension argument of the first input, counted from the front."""
        return int(self.argument(position, name, default)) % max(len(self.inputs[0].shape), 1)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(meta.shape for meta in self.inputs)

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(meta.shape for meta in self.outputs)


@dataclass(frozen=True)
class Signature:
    """One axis of a strategy: an entry per tensor. `label` is the index split, or B, B/P, P."""

    label: str
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]


@dataclass(frozen=True)
class InnerCollective:
    """A collective inside a local program; its bytes are counted before the axis cuts."""

    kind: str
    size_bytes: int
    axis: str
    backward: bool = False


@dataclass(frozen=True)
class OpMemory:
    """What one candidate of an op keeps and needs, in bytes of the rank with the largest shards.

    saves: tensors that autograd keeps from the op to its backward: input positions, and "output".
    kept: bytes beside these from the op to its backward: masks, statistics, copies of operands.
    forward: bytes that live only while the op runs, beside its inputs, its outputs and `kept`.
    backward: bytes that live only while its backward runs, beside what was kept, the gradients of
        its outputs, and those of its inputs.
    passes: inputs whose gradient is that of the output, or a view of it: it has no memory of its
        own. Every other input that wants a gradient gets a new tensor of its size.

    All of it is what the op's kernels hold in tensors; a kernel's own scratch space is not known.
    """

    saves: tuple[int | str, ...] = ()
    kept: int = 0
    forward: int = 0
    backward: int = 0
    passes: tuple[int, ...] = ()


STREAMS = "~"
"""Ends a label that splits an index and streams a factor without it."""


def index_of(label: str) -> str:
    """The index that a label splits."""
    return label.removesuffix(STREAMS)


def is_streaming(label: str) -> bool:
    return label.endswith(STREAMS)


@dataclass(frozen=True)
class Stream:
    """A factor that lies split along `dim`, its `contracted` index, and comes by in blocks."""

    contracted: str
    factor: int
    dim: int


Program = Callable[..., Any]
"""`program(context, *args, **kwargs)`: emits the local ops of one node; see `strategies.local`."""

Inner = Callable[[OpCall, "LocalContext"], Iterable[InnerCollective]]


@dataclass(frozen=True)
class Rule:
    """How one op may be split.

    notation: text, or a function from the call to text or to a Bound; None where this call of the
        op has no rule.
    kind: which roof bounds the op: "matmul", "attention", "memory", or "free" for a view.
    partial: sets of inputs through which P passes together, each to all outputs (linear in one
        argument: {0}; additive: {0, 1}); inputs outside the set lie as B/P.
    sums: whether an index missing from the output is summed over (then it leaves P).
    completes: indices that the program reduces itself, so that the output lies B, not P.
    together: a label to the indices that one axis splits at once, for splits that need each other:
        rows and the experts that they travel to. `Bound.sizes` holds the label as if an index.
    permits: whether labels may split one op together, one an axis, outermost first; None where
        every combination is right.
    saves: tensors that autograd keeps for backward: input positions, and "output".
    memory: what a candidate keeps and needs, where that is more than `saves`: from the call, the
        candidate's context, and an OpMemory of `saves` alone; `strategies.memory` has usual ones.
    sizes: position of the argument that holds the output's shape, to be rewritten.
    needs_rows: whether the op fails on a shard without rows, or the indices for which it does; no
        candidate then leaves one empty.
    program: the local program, where it is not the op itself on shards.
    streams: positions of two factors of which an axis may split one and stream the other: there
        the other lies split along the index that both contract, and comes by in blocks, so that it
        is never whole on a rank. Label `b~` splits index b and streams the factor without b.
    stream_program: the local program of a candidate with such a label.
    inner: collectives inside the program, for pricing: from the call and the candidate's context.
        Where a rule has `streams`, those inside that program.
    flops: floating-point operations of the whole op forward; by default 2 x all indices for
        "matmul", one a number of the largest tensor otherwise.
    """

    notation: str | Callable[[OpCall], str | Bound | None]
    kind: str = "memory"
    partial: tuple[frozenset[int], ...] | Callable[[OpCall], tuple[frozenset[int], ...]] = ()
    sums: bool = False
    completes: frozenset[str] = frozenset()
    together: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    permits: Callable[[tuple[str, ...]], bool] | None = None
    saves: tuple[int | str, ...] | Callable[[OpCall], tuple[int | str, ...]] = ()
    memory: Callable[[OpCall, LocalContext, OpMemory], OpMemory] | None = None
    sizes: int | None = None
    needs_rows: bool | frozenset[str] = False
    program: Program | None = None
    streams: tuple[int, int] | None = None
    stream_program: Program | None = None
    inner: Inner | None = None
    flops: Callable[[OpCall], float] | None = None

    def bound(self, call: OpCall) -> Bound:
        """The rule's notation on the shapes of `call`; labels that stream are as if indices."""
        bound = self._bound(call)
        streams = self.streams_of(bound)
        if not streams:
            return bound
        sizes = {label: bound.sizes[index_of(label)] for label in streams}
        return replace(bound, sizes={**bound.sizes, **sizes})

    def _bound(self, call: OpCall) -> Bound:
        notation = self.notation if isinstance(self.notation, str) else self.notation(call)
        if isinstance(notation, Bound):
            return notation
        if notation is None:
            whole = tuple((None,) * len(shape) for shape in call.input_shapes)
            return Bound(whole, tuple((None,) * len(shape) for shape in call.output_shapes), {})
        return bind(parse(notation), call.input_shapes, call.output_shapes)

    def streams_of(self, bound: Bound) -> dict[str, Stream]:
        """The labels that stream a factor, and which one; none where the product has a batch."""
        if self.streams is None:
            return {}
        left, right = (bound.inputs[position] for position in self.streams)
        shared = set(left) & set(right) - {None}
        if len(shared) != 1 or shared & set(bound.outputs[0]) or len(right) != 2:
            return {}
        (contracted,) = shared
        found = {}
        for split, streamed in (self.streams, self.streams[::-1]):
            at = bound.inputs[streamed].index(contracted)
            for index in bound.inputs[split]:
                if index is not None and index != contracted:
                    found[index + STREAMS] = Stream(str(contracted), streamed, at)
        return found

    def program_of(self, labels: Sequence[str]) -> Program | None:
        """The local program of the candidate with `labels`; None where it is the op itself."""
        return self.stream_program if any(map(is_streaming, labels)) else self.program

    def inner_of(self, labels: Sequence[str]) -> Inner | None:
        """What tells the collectives inside the program of the candidate with `labels`, if any."""
        plain = self.streams is not None and not any(map(is_streaming, labels))
        return None if plain else self.inner

    def applies(self, call: OpCall) -> bool:
        """Whether the rule says anything of this call; without, it runs replicated."""
        return isinstance(self.notation, str) or self.notation(call) is not None

    def fails_without(self, index: str) -> bool:
        """Whether the op fails on a shard without rows of `index`."""
        return self.needs_rows if isinstance(self.needs_rows, bool) else index in self.needs_rows

    def saved(self, call: OpCall) -> tuple[int | str, ...]:
        """What autograd keeps of this call: an optional operand that it has not is not kept."""
        saves = self.saves(call) if callable(self.saves) else self.saves
        return tuple(each for each in saves if each == "output" or int(each) < len(call.inputs))

    def memory_of(self, call: OpCall, context: LocalContext) -> OpMemory:
        """What the candidate that `context` describes keeps and needs."""
        plain = OpMemory(self.saved(call))
        return plain if self.memory is None else self.memory(call, context, plain)

    def total_flops(self, call: OpCall) -> float:
        """Floating-point operations of the whole op, forward."""
        if self.flops is not None:
            return self.flops(call)
        if self.kind == "matmul":
            return 2.0 * math.prod(self._bound(call).sizes.values())
        return float(max((meta.numel for meta in (*call.inputs, *call.outputs)), default=0))


def all_together(call: OpCall) -> tuple[frozenset[int], ...]:
    """`Rule.partial` of what adds, or only rearranges: P passes through all inputs at once."""
    return (frozenset(range(len(call.inputs))),)


def any_one(call: OpCall) -> tuple[frozenset[int], ...]:
    """`Rule.partial` of a product: P passes through any one factor, the others whole."""
    return tuple(frozenset({i}) for i in range(len(call.inputs)))


def signatures(rule: Rule | None, call: OpCall, lean: bool = False) -> tuple[Signature, ...]:
    """Every one-axis signature of `call`, derived from the rule's notation.

    Splitting an index gives S where it stands, B/P on inputs without it (P on addends if the
    output loses it), and P on outputs that lost it. All B, and all B/P where a gradient flows,
    always work, with a rule or without. `lean`: those that stream a factor too.
    """
    result = [
        Signature("B", (B,) * len(call.inputs), (B,) * len(call.outputs)),
        Signature("B/P", (BP,) * len(call.inputs), (BP,) * len(call.outputs)),
    ]
    if rule is not None:
        bound = rule.bound(call)
        labels = dict.fromkeys((*bound.indices, *rule.together))
        result.extend(filter(None, (_split(rule, bound, label) for label in labels)))
        partial = rule.partial(call) if callable(rule.partial) else rule.partial
        for number, carriers in enumerate(partial):
            carriers = carriers | bound.addends
            entries = tuple(P if i in carriers else BP for i in range(len(call.inputs)))
            label = "P" if number == 0 else f"P{number}"
            result.append(Signature(label, entries, (P,) * len(call.outputs)))
        if lean:
            streams = rule.streams_of(bound).items()
            result.extend(filter(None, (_streaming(rule, bound, *each) for each in streams)))
    unique: dict[tuple[tuple[Entry, ...], ...], Signature] = {}
    for each in result:
        plain = plain_signature(each, call)
        unique.setdefault((plain.inputs, plain.outputs), plain)
    return tuple(unique.values())


def plain_signature(signature: Signature, call: OpCall) -> Signature:
    """The signature with B/P written B on tensors that need no gradient."""

    def plain(entries: tuple[Entry, ...], metas: tuple[TensorMeta, ...]) -> tuple[Entry, ...]:
        return tuple(
            B if entry == BP and not meta.requires_grad else entry
            for entry, meta in zip(entries, metas, strict=True)
        )

    return Signature(
        signature.label,
        plain(signature.inputs, call.inputs),
        plain(signature.outputs, call.outputs),
    )


def _split(rule: Rule, bound: Bound, label: str) -> Signature | None:
    """The signature that splits the index `label`, or the indices that it stands for."""
    choices = (rule.together.get(label, (label,)), (label,))
    indices = next((each for each in choices if set(each) <= set(bound.indices)), ())
    if not indices:
        return None
    inputs = [_split_dim(dims, indices) for dims in bound.inputs]
    outputs = [_split_dim(dims, indices) for dims in bound.outputs]
    lost = all(dim is None for dim in outputs)
    if lost and not rule.sums and label not in rule.completes:
        return None
    addend: Entry = P if lost and label not in rule.completes else BP
    reduced: Entry = B if label in rule.completes else P
    return Signature(
        label,
        tuple(
            Split(dim) if dim is not None else addend if i in bound.addends else BP
            for i, dim in enumerate(inputs)
        ),
        tuple(Split(dim) if dim is not None else reduced for dim in outputs),
    )


def _streaming(rule: Rule, bound: Bound, label: str, stream: Stream) -> Signature | None:
    """The signature of the index alone, with the other factor split too."""
    plain = _split(rule, bound, index_of(label))
    if plain is None:
        return None
    inputs = list(plain.inputs)
    inputs[stream.factor] = Split(stream.dim)
    return Signature(label, tuple(inputs), plain.outputs)


def _split_dim(dims: tuple[str | None, ...], indices: tuple[str, ...]) -> int | None:
    """The dimension that carries one of `indices`."""
    return next((at for at, index in enumerate(dims) if index in indices), None)
