"""Data parallelism: the batch split, parameters whole when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autoplan.hints import Hint
from autoplan.layouts import BP, B, Entry, Split
from autoplan.policies import Policy

if TYPE_CHECKING:
    from autoplan.capture import Captured

WHOLE: frozenset[Entry | str] = frozenset({B, BP})


def data(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Batch split on `axis`; parameters whole when read, their gradients summed over the ranks."""
    yield from _split_batch(captured, axis, "data")
    for each in captured.inputs_of("parameter"):
        read: frozenset[Entry | str] = frozenset({BP}) if each.meta.requires_grad else WHOLE
        yield Hint(each.path, "use", {axis: read}, "the data-parallel scheme")


def ddp(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Plain data parallelism: everything but the batch whole."""
    yield from data(captured, axis, size)
    for each in captured.inputs_of("parameter"):
        yield Hint(each.path, "storage", {axis: frozenset({B})}, "preset 'ddp'")


def fsdp(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Parameters stored split along a dimension with a row for every rank, if they have one.

    Gathered once a step; where memory binds, as few of them in every microbatch as it asks for.
    """
    yield from _stored_split(captured, axis, size, "fsdp")


def zero1(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Optimizer state split; parameters gathered, and whole gradients reduced, once a step.

    ZeRO-1 (Rajbhandari et al. 2020, section 5.1), with parameters as shards between steps.
    """
    yield from _stored_split(captured, axis, size, "zero1", "step")


def zero2(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """As zero1, with gradients split, too: reduced in every microbatch (section 5.2)."""
    yield from _stored_split(captured, axis, size, "zero2", "reduce")


def zero3(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Nothing is whole but around its readers: gathered in every microbatch's forward, again in its
    backward, which reduces the gradient (section 5.3; Zhao et al. 2023, "reshard after forward").
    """
    yield from _stored_split(captured, axis, size, "zero3", "microbatch")


def _stored_split(
    captured: Captured, axis: str, size: int, name: str, policy: Policy | None = None
) -> Iterator[Hint]:
    yield from data(captured, axis, size)
    for each in captured.inputs_of("parameter"):
        dims = [d for d, rows in enumerate(each.meta.shape) if fills(rows, size)]
        stored: frozenset[Entry | str] = frozenset(Split(d) for d in dims) or frozenset({B})
        yield Hint(each.path, "storage", {axis: stored}, f"preset {name!r}")
        frozen = policy == "reduce" and not each.meta.requires_grad
        if policy is not None and dims and not frozen:
            gathered: frozenset[Entry | str] = frozenset({policy})
            # Of a parameter that the prologue computes with there is no other policy than "step".
            yield Hint(each.path, "gather", {axis: gathered}, f"preset {name!r}", required=False)


def fills(rows: int, size: int) -> bool:
    """Whether every one of `size` ranks has a row."""
    return (size - 1) * -(-rows // size) < rows


def _split_batch(captured: Captured, axis: str, origin: str) -> Iterator[Hint]:
    """Arguments that carry the batch, dimension 0 of the first tensor, are split along it."""
    arguments = [each for each in captured.inputs_of("input") if each.meta.shape]
    batch = arguments[0].meta.shape[0] if arguments else 0
    for each in arguments:
        if each.meta.shape[0] == batch:
            yield Hint(each.path, "value", {axis: frozenset({Split(0)})}, f"scheme {origin!r}")
