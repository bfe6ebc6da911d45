"""Tensor parallelism over grids of ranks, 2D (SUMMA), 2.5D and 3D: an axis of a grid at a time."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import fx

from autoplan.errors import ConfigError
from autoplan.hints import Hint
from autoplan.layouts import BP, B, Entry, Split
from autoplan.sites import describe, results_by_module
from autoplan.strategies.matmul import RULES as PRODUCTS
from autoplan.strategies.rule import STREAMS, index_of

if TYPE_CHECKING:
    from autoplan.capture import Captured

GRID_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "tensor_depth": "2.5d-depth",
        "tensor_row": "2d-row",
        "tensor_column": "2d-column",
        "tensor_input": "3d-input",
        "tensor_output": "3d-output",
        "tensor_weight": "3d-weight",
    }
)
"""The mesh axes of grids, and the preset that each is bound to."""

_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "2d": "q x q ranks",
        "2.5d": "depth x q x q ranks with depth <= q",
        "3d": "q x q x q ranks",
    }
)


def grid_axes(mode: str, size: int, depth: int | None = None) -> dict[str, int]:
    """The mesh axes of a tensor grid and their sizes, outermost first; axes of size 1 are left out.

    2d: q x q ranks. 2.5d: depth x q x q with depth <= q (Wang et al. 2021, section 3.1); a depth
    left out is the greatest that fits, which moves the fewest bytes. 3d: q x q x q (Agarwal et al.
    1995). Raises ConfigError for a size that is no such grid, with the nearest that are.
    """
    if mode not in _FORMS:
        raise ConfigError(
            f"tensor mode {mode!r} is not a grid; the grids are {', '.join(map(repr, _FORMS))}."
        )
    if depth is not None and mode != "2.5d":
        raise ConfigError(
            f"tensor mode {mode!r} has no depth, got depth={depth}; leave it out, or use "
            "mode='2.5d'."
        )
    if depth is not None and depth < 1:
        raise ConfigError(f"the depth of tensor mode '2.5d' must be positive, got {depth}.")
    axes = _grid(mode, size, depth)
    if axes is None:
        raise _refused(mode, size, depth)
    return {axis: ranks for axis, ranks in axes.items() if ranks > 1}


def _grid(mode: str, size: int, depth: int | None) -> dict[str, int] | None:
    """The axes of a grid of `size` ranks; None where there is no such grid."""
    if mode == "3d":
        side = round(size ** (1 / 3))
        sides = dict.fromkeys(("tensor_input", "tensor_output", "tensor_weight"), side)
        return sides if side**3 == size else None
    if mode == "2d":
        side = math.isqrt(size)
        return {"tensor_row": side, "tensor_column": side} if side * side == size else None
    # A grid no deeper than wide has at most as many layers as a cube has.
    deepest = max(layers for layers in range(1, size + 1) if layers**3 <= size)
    for layers in range(deepest, 0, -1) if depth is None else (depth,):
        side = math.isqrt(size // layers)
        if layers * side * side == size and layers <= side:
            return {"tensor_depth": layers, "tensor_row": side, "tensor_column": side}
    return None


def _refused(mode: str, size: int, depth: int | None) -> ConfigError:
    """Why `size` ranks are no such grid, and what would be one."""
    below = next((n for n in range(size - 1, 1, -1) if _grid(mode, n, depth)), None)
    above = next(n for n in itertools.count(size + 1) if _grid(mode, n, depth))
    near = f"{below} or {above}" if below is not None else str(above)
    form = _FORMS[mode] if depth is None else f"{depth} x q x q ranks with q >= {depth}"
    also = ""
    if depth is not None and (other := _grid(mode, size, None)):
        also = f"depth={other.get('tensor_depth', 1)}, or "
    given = "" if depth is None else f" with depth={depth}"
    return ConfigError(
        f"tensor size={size} does not fit mode={mode!r}{given}, which needs {form}; "
        f"use {also}size={near}."
    )


@dataclass(frozen=True)
class _Product:
    """A product of a value x, of `ndim` dimensions, with a matrix w made of parameters.

    depth: weighted products on the longest way to it. rows, columns: indices of x and of w alone.
    weights: paths of the parameters. argument: the path of x where it is one of the model's.
    """

    path: str
    op: str
    depth: int
    ndim: int
    rows: frozenset[str]
    columns: frozenset[str]
    contracted: str
    weights: frozenset[str]
    argument: str


Which = Callable[[_Product], bool]


# -- presets --------------------------------------------------------------------------------


def rows_2d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """An axis of a SUMMA grid: rows of inputs and outputs split, weights streamed."""
    products, origin = _products(captured), "tensor mode '2d'"
    yield from _split_over(products, axis, lambda each: _streaming(each.rows), origin)
    yield from _stored_split(products, axis, origin)
    yield from _arguments(products, axis, lambda _: False, origin)


def columns_2d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """The other axis of the grid: columns of weights and outputs split, inputs streamed."""
    products, origin = _products(captured), "tensor mode '2d'"
    yield from _split_over(products, axis, lambda each: _streaming(each.columns), origin)
    yield from _stored_split(products, axis, origin)
    yield from _arguments(products, axis, lambda _: True, origin)


def depth_25d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """Layers of 2D grids: each has rows of the inputs, and all of the weights (Tesseract)."""
    products, origin = _products(captured), "tensor mode '2.5d'"
    yield from _split_over(products, axis, lambda each: each.rows, origin)
    for path in _weights(products):
        yield Hint(path, "storage", {axis: frozenset({B})}, origin)
        yield Hint(path, "use", {axis: frozenset({B, BP})}, origin, required=False)
    yield from _arguments(products, axis, lambda _: False, origin)


def input_3d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """The axis of a cube that a product's input is gathered over, and the next one's output."""
    yield from _side_of_cube(captured, axis, parity=0)


def output_3d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """The axis that a product's output is summed over, and the next one's input gathered."""
    yield from _side_of_cube(captured, axis, parity=1)


def weight_3d(captured: Captured, axis: str, size: int) -> Iterator[Hint]:
    """The axis of a cube that weights are gathered over: inputs and outputs split by rows."""
    products, origin = _products(captured), "tensor mode '3d'"
    yield from _split_over(products, axis, lambda each: each.rows, origin)
    yield from _stored_split(products, axis, origin)
    yield from _arguments(products, axis, lambda _: False, origin)
    yield from _results(captured, products, axis, lambda _: False, origin)


def _side_of_cube(captured: Captured, axis: str, parity: int) -> Iterator[Hint]:
    products, origin = _products(captured), "tensor mode '3d'"

    def gathers(each: _Product) -> bool:
        """Whether the axis gathers the input of a product, or else sums its output."""
        return each.depth % 2 == parity

    def labels(each: _Product) -> frozenset[str]:
        return each.columns if gathers(each) else frozenset({each.contracted})

    yield from _split_over(products, axis, labels, origin)
    yield from _stored_split(products, axis, origin)
    yield from _arguments(products, axis, lambda each: not gathers(each), origin)
    yield from _results(captured, products, axis, gathers, origin)


def _split_over(
    products: Collection[_Product],
    axis: str,
    labels: Callable[[_Product], frozenset[str]],
    origin: str,
) -> Iterator[Hint]:
    """Each product split over one of its `labels`; those of one module and op share theirs."""
    allowed: dict[tuple[str, str], frozenset[str]] = {}
    for each in products:
        place = each.path, each.op
        allowed[place] = allowed.get(place, frozenset()) | labels(each)
    for (path, op), names in allowed.items():
        yield Hint(path, "op", {axis: frozenset(names)}, origin, frozenset({op}), required=False)


def _stored_split(products: Collection[_Product], axis: str, origin: str) -> Iterator[Hint]:
    """Weights split along either dimension."""
    split: frozenset[Entry | str] = frozenset({Split(0), Split(1)})
    for path in _weights(products):
        yield Hint(path, "storage", {axis: split}, origin, required=False)


def _arguments(
    products: Collection[_Product], axis: str, by_columns: Which, origin: str
) -> Iterator[Hint]:
    """Arguments of the model that products read, split by rows or by columns."""
    for each in products:
        if each.argument:
            yield _split_value(each.argument, axis, each.ndim, by_columns(each), origin)


def _results(
    captured: Captured,
    products: Collection[_Product],
    axis: str,
    by_columns: Which,
    origin: str,
) -> Iterator[Hint]:
    """Results of modules that have one product, split by rows or by columns."""
    results = results_by_module(captured)
    count = Counter(each.path for each in products)
    for each in products:
        made = results.get(each.path, [])
        if each.path and count[each.path] == len(made) == 1:
            ndim = made[0].meta["val"].ndim
            yield _split_value(each.path, axis, ndim, by_columns(each), origin)


def _split_value(path: str, axis: str, ndim: int, columns: bool, origin: str) -> Hint:
    dims = [ndim - 1] if columns else range(ndim - 1)
    split: frozenset[Entry | str] = frozenset(map(Split, dims))
    return Hint(path, "value", {axis: split}, origin, required=False)


# -- the products of a model ----------------------------------------------------------------


def _products(captured: Captured) -> list[_Product]:
    """In graph order."""
    arguments = {each.node: each.path for each in captured.inputs_of("input")}
    made_of = {each.node: frozenset({each.path}) for each in captured.inputs_of("parameter")}
    depths: dict[str, int] = {}
    found: list[_Product] = []
    for node in captured.graph.nodes:
        operands = [each.name for each in node.all_input_nodes]
        if node.op == "call_function" and operands and all(name in made_of for name in operands):
            made_of[node.name] = frozenset().union(*(made_of[name] for name in operands))
            continue
        depths[node.name] = max((depths.get(name, 0) for name in operands), default=0)
        product = _product(node, depths[node.name], made_of, arguments)
        if product is not None:
            found.append(product)
            depths[node.name] += 1
    return found


def _product(
    node: fx.Node,
    depth: int,
    made_of: Mapping[str, frozenset[str]],
    arguments: Mapping[str, str],
) -> _Product | None:
    """The node as a product of a value and a matrix of parameters; None if it is none."""
    rule = PRODUCTS.get(str(node.target)) if node.op == "call_function" else None
    if rule is None or rule.streams is None:
        return None
    call, operands = describe(node)
    x, w = rule.streams
    streams = rule.streams_of(rule.bound(call))
    if not streams or operands[w].name not in made_of:
        return None
    return _Product(
        node.meta["path"],
        call.op,
        depth,
        len(call.inputs[x].shape),
        rows=frozenset(index_of(label) for label, each in streams.items() if each.factor == w),
        columns=frozenset(index_of(label) for label, each in streams.items() if each.factor == x),
        contracted=next(iter(streams.values())).contracted,
        weights=made_of[operands[w].name],
        argument=arguments.get(operands[x].name, ""),
    )


def _weights(products: Collection[_Product]) -> list[str]:
    return sorted(frozenset().union(*(each.weights for each in products)))


def _streaming(indices: frozenset[str]) -> frozenset[str]:
    return frozenset(index + STREAMS for index in indices)
