"""Sequence (context) parallelism: tokens split along the sequence, parameters whole when read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autoplan.errors import HintError
from autoplan.hints import Hint
from autoplan.layouts import BP, Entry, Split
from autoplan.sites import describe, results_by_module
from autoplan.strategies.presets.data import WHOLE, fills
from autoplan.strategies.presets.structure import paths_of_weighted_products
from autoplan.strategies.presets.tensor import ATTENTION
from autoplan.strategies.rule import OpCall

if TYPE_CHECKING:
    from autoplan.capture import Captured


def ulysses(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Attention over heads: all-to-alls from tokens to heads and back (Jacobs et al. 2023).

    Where key heads are fewer than ranks, every rank has all of them. Raises HintError where a rank
    would have no tokens, or no heads.
    """
    yield from _split_tokens(captured, axis, size, "ulysses")
    for path, call in _attentions(captured, axis, "ulysses"):
        heads = call.inputs[0].shape[-3] if len(call.inputs[0].shape) > 2 else 1
        if not fills(heads, size):
            raise HintError(
                f"preset 'ulysses' on axis {axis!r}: the attention of {path!r} has {heads} heads, "
                f"which leave some of {size} ranks none; use at most {heads} ranks, a size that "
                "divides the heads, or the preset 'ring'."
            )
        yield _over(path, axis, frozenset({"h", "g"}), "ulysses")


def ring(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Ring attention: keys and values travel from rank to rank (Liu et al. 2023).

    Raises HintError where the sequence cannot be cut, and where attention has dropout.
    """
    yield from _split_tokens(captured, axis, size, "ring")
    for path, call in _attentions(captured, axis, "ring"):
        reason = _no_ring(call, size)
        if reason:
            raise HintError(f"preset 'ring' on axis {axis!r}: the attention of {path!r} {reason}.")
        yield _over(path, axis, frozenset({"ring"}), "ring")


def _no_ring(call: OpCall, size: int) -> str:
    """Why attention cannot go around a ring of `size`; empty where it can."""
    dropout = call.argument(4, "dropout_p", 0.0)
    if dropout:
        return (
            f"has a dropout of {dropout:g}, and ring attention knows none; set the attention "
            "dropout of the model to 0, or use the preset 'ulysses'"
        )
    queries, keys = (meta.shape[-2] for meta in call.inputs[:2])
    causal = bool(call.argument(5, "is_causal", False))
    if causal and queries != keys:
        return (
            f"is causal with {queries} queries and {keys} keys; ring attention wants as many of "
            "both, as without a cache of earlier keys"
        )
    parts = 2 * size if causal else size
    for length in (queries, keys):
        if length % parts:
            halves = ", two causal half-parts for each rank" if causal else ""
            return (
                f"has {length} tokens, which {size} ranks cannot share evenly; use a multiple of "
                f"{parts}{halves}, or another number of ranks"
            )
    return ""


def _split_tokens(captured: Captured, axis: str, size: int, preset: str) -> Iterator[Hint]:
    """Arguments of the first one's batch and length lie split along the sequence, dimension 1, and
    so does what products with weights make of them."""
    origin = f"preset {preset!r}"
    arguments = [each for each in captured.inputs_of("input") if len(each.meta.shape) > 1]
    for each in arguments:
        if each.meta.shape[:2] != arguments[0].meta.shape[:2]:
            continue
        if not fills(each.meta.shape[1], size):
            raise HintError(
                f"{origin} on axis {axis!r}: {each.path!r} has {each.meta.shape[1]} tokens (shape "
                f"{list(each.meta.shape)}), which leave some of {size} ranks none; use longer "
                "sequences, a multiple of the ranks, or fewer ranks."
            )
        yield Hint(each.path, "value", {axis: frozenset({Split(1)})}, origin)
    tokens = arguments[0].meta.shape[:2] if arguments else ()
    results = results_by_module(captured)
    for path in paths_of_weighted_products(captured):
        shapes = [tuple(node.meta["val"].shape) for node in results.get(path, ())]
        if shapes and all(len(shape) > 2 and shape[:2] == tokens for shape in shapes):
            yield Hint(path, "value", {axis: frozenset({Split(1)})}, origin)
    for each in captured.inputs_of("parameter"):
        read: frozenset[Entry | str] = frozenset({BP}) if each.meta.requires_grad else WHOLE
        yield Hint(each.path, "use", {axis: read}, origin)


def _attentions(captured: Captured, axis: str, preset: str) -> list[tuple[str, OpCall]]:
    """Every call of attention, with the path of its module; HintError where there is none."""
    nodes: list[Any] = [node for node in captured.graph.nodes if str(node.target) == ATTENTION]
    if not nodes:
        raise HintError(
            f"preset {preset!r} on axis {axis!r}: the model calls no scaled_dot_product_attention, "
            "which the preset splits; build it with that (attn_implementation='sdpa' in "
            "transformers), or use another preset."
        )
    return [(node.meta["path"], describe(node)[0]) for node in nodes]


def _over(path: str, axis: str, labels: frozenset[Entry | str], preset: str) -> Hint:
    return Hint(path, "op", {axis: labels}, f"preset {preset!r}", frozenset({ATTENTION}))
