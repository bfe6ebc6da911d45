"""Known schemes as hints: each preset is one function that binds one mesh axis.

data         batch split; each parameter is whole when it is read; stored whole or split
ddp          data, with parameters, gradients and optimizer state whole on every rank
fsdp         data, with parameters stored split (ZeRO-3 storage, Rajbhandari et al. 2020)
1d           matrix products split over rows or columns of their weights (Shoeybi et al. 2019)
megatron     1d, with the activations between blocks whole
megatron-sp  1d, with the activations between blocks split along the sequence
             (Korthikanti et al. 2022)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from autoplan.errors import ConfigError
from autoplan.hints import Hint
from autoplan.layouts import BP, B, Entry, Split
from autoplan.strategies.matmul import RULES as PRODUCTS

if TYPE_CHECKING:
    from autoplan.capture import Captured

Preset = Callable[["Captured", str, int], Iterator[Hint]]

_WHOLE: frozenset[Entry | str] = frozenset({B, BP})
_ATTENTION = "aten.scaled_dot_product_attention.default"


def data(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Batch split on `axis`; parameters whole when read, their gradients summed over the ranks."""
    yield from _split_batch(captured, axis, "data")
    for each in captured.inputs_of("parameter"):
        read: frozenset[Entry | str] = frozenset({BP}) if each.meta.requires_grad else _WHOLE
        yield Hint(each.path, "use", {axis: read}, "the data-parallel scheme")


def ddp(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Plain data parallelism: everything but the batch whole."""
    yield from data(captured, axis, size)
    for each in captured.inputs_of("parameter"):
        yield Hint(each.path, "storage", {axis: frozenset({B})}, "preset 'ddp'")


def fsdp(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Parameters stored split along a dimension with a row for every rank, if they have one."""
    yield from data(captured, axis, size)
    for each in captured.inputs_of("parameter"):
        dims = [d for d, rows in enumerate(each.meta.shape) if _fills(rows, size)]
        stored: frozenset[Entry | str] = frozenset(Split(d) for d in dims) or frozenset({B})
        yield Hint(each.path, "storage", {axis: stored}, "preset 'fsdp'")


def tensor_1d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Products with a weight split over its rows or columns, attention over heads."""
    origin = "tensor mode '1d'"
    for each in captured.inputs_of("input"):
        yield Hint(each.path, "value", {axis: _WHOLE}, origin)
    weighted, attention = frozenset(PRODUCTS), frozenset({_ATTENTION})
    for path in _paths_of_weighted_products(captured):
        yield Hint(path, "op", {axis: frozenset({"i", "o"})}, origin, weighted, required=False)
    yield Hint("*", "op", {axis: frozenset({"h"})}, origin, attention, required=False)
    tables = frozenset({"aten.embedding.default"})
    yield Hint("*", "op", {axis: frozenset({"v", "B", "B/P"})}, origin, tables, required=False)


def megatron(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """1d, with whole activations between blocks."""
    yield from tensor_1d(captured, axis, size)
    for path in _blocks(captured):
        yield Hint(path, "value", {axis: _WHOLE}, "preset 'megatron'")


def megatron_sp(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """1d, with activations between blocks split along dimension 1, the sequence."""
    yield from tensor_1d(captured, axis, size)
    for path in _blocks(captured):
        yield Hint(path, "value", {axis: frozenset({Split(1)})}, "preset 'megatron-sp'")


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "data": data,
        "ddp": ddp,
        "fsdp": fsdp,
        "1d": tensor_1d,
        "megatron": megatron,
        "megatron-sp": megatron_sp,
    }
)


def preset_hints(
    captured: Captured, schemes: Mapping[str, str], sizes: Mapping[str, int]
) -> tuple[Hint, ...]:
    """The hints of the scheme that each axis is bound to; ConfigError for an unknown name."""
    result: list[Hint] = []
    for axis, name in schemes.items():
        if name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"no preset is called {name!r}{meant}; there are {', '.join(PRESETS)}."
            )
        result.extend(PRESETS[name](captured, axis, sizes[axis]))
    return tuple(result)


def _fills(rows: int, size: int) -> bool:
    return (size - 1) * -(-rows // size) < rows


def _split_batch(captured: Captured, axis: str, origin: str) -> Iterator[Hint]:
    """Arguments that carry the batch, dimension 0 of the first tensor, are split along it."""
    arguments = [each for each in captured.inputs_of("input") if each.meta.shape]
    batch = arguments[0].meta.shape[0] if arguments else 0
    for each in arguments:
        if each.meta.shape[0] == batch:
            yield Hint(each.path, "value", {axis: frozenset({Split(0)})}, f"scheme {origin!r}")


def _paths_of_weighted_products(captured: Captured) -> list[str]:
    """Modules with a matrix product that reads a parameter, directly or through views of it."""
    parameters = {each.node for each in captured.inputs_of("parameter")}
    derived = set(parameters)
    paths: dict[str, None] = {}
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        operands = [each.name for each in node.all_input_nodes]
        if operands and all(name in derived for name in operands):
            derived.add(node.name)
        elif str(node.target) in PRODUCTS and any(name in derived for name in operands):
            paths[node.meta["path"]] = None
    return list(paths)


def _blocks(captured: Captured) -> list[str]:
    """Numbered modules with several weighted products: the layers of a transformer."""
    counts: dict[str, int] = {}
    for path in _paths_of_weighted_products(captured):
        match = re.match(r"^(?:.*?\.)?\d+(?=\.)", path)
        if match:
            counts[match.group(0)] = counts.get(match.group(0), 0) + 1
    return [path for path, count in counts.items() if count > 1]
