"""A random program while it is written: every line runs at once, so that shapes are known."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = (1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8, 11)
MOST_ELEMENTS = 600
LARGEST_VALUE = 20.0


def real(seed: int, *shape: int) -> Tensor:
    """Normal numbers, the same for the same seed and shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7


def whole(seed: int, high: int, *shape: int) -> Tensor:
    """Integers in [0, high)."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def flags(seed: int, *shape: int) -> Tensor:
    return real(seed, *shape) > 0


def order(seed: int, count: int) -> Tensor:
    """A permutation of [0, count)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


NAMES: dict[str, Any] = {
    "torch": torch,
    "F": F,
    "nn": nn,
    "math": math,
    "real": real,
    "whole": whole,
    "flags": flags,
    "order": order,
}
"""What the text of a program may use."""


@dataclass(frozen=True)
class Statement:
    """A line of `forward`. `defines`: the values that it names; none where it writes in place."""

    text: str
    defines: tuple[str, ...]
    family: str

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(re.findall(r"\b[vx]\d+\b", self.text)) - set(self.defines)


@dataclass(frozen=True)
class Program:
    """A module as text: lines of `__init__` and of `forward`, arguments by name, and its result."""

    attributes: tuple[str, ...]
    arguments: dict[str, str]
    statements: tuple[Statement, ...]
    result: str

    @property
    def text(self) -> str:
        """The class, and the example that it takes."""
        lines = [
            "class Fuzzed(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
        ]
        lines += [f"        {each}" for each in self.attributes]
        lines += ["", f"    def forward(self, {', '.join(self.arguments)}):"]
        lines += [f"        {each.text}" for each in self.statements]
        lines += [f"        return {self.result}", ""]
        lines += ["", "example = {"]
        lines += [f"    {name!r}: {text}," for name, text in self.arguments.items()]
        return "\n".join([*lines, "}", ""])

    def without_what_nothing_reads(self) -> Program:
        """Only lines, arguments and attributes that the result depends on."""
        needed = set(re.findall(r"\b[vx]\d+\b", self.result))
        kept = []
        for each in reversed(self.statements):
            writes = not each.defines
            if needed & set(each.defines) or (writes and (needed & each.reads or not each.reads)):
                kept.append(each)
                needed |= each.reads
        text = "\n".join([*(each.text for each in kept), self.result])
        attributes: list[str] = []
        for each in reversed(self.attributes):
            if re.search(rf"{_name_of(each)}\b", text):
                attributes.append(each)
                text += each.partition("=")[2]
        return replace(
            self,
            statements=tuple(reversed(kept)),
            arguments={k: v for k, v in self.arguments.items() if k in needed},
            attributes=tuple(reversed(attributes)),
        )


def _name_of(attribute: str) -> str:
    found = re.search(r"self\.register_buffer\('(\w+)'|self\.(\w+) =", attribute)
    assert found is not None, attribute
    return f"self.{found[1] or found[2]}"


@dataclass
class Draft:
    """Lines so far and the values that they made; `rowwise`: dimension 0 is a batch throughout."""

    random: random.Random
    rowwise: bool = False
    module: nn.Module = field(default_factory=nn.Module)
    attributes: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.sizes = [self.random.choice(SIZES) for _ in range(3)]
        self.rows = self.random.choice(SIZES)

    # -- chance -----------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choose(self, options: Sequence[Any]) -> Any:
        return self.random.choice(options)

    def size(self) -> int:
        """Mostly one of few sizes, so that tensors fit each other."""
        return self.random.choice(self.sizes if self.chance(0.8) else SIZES)

    def shape(self, ndim: int | None = None) -> tuple[int, ...]:
        ndim = self.random.choice((1, 2, 2, 3, 3, 4)) if ndim is None else ndim
        sizes = [self.size() for _ in range(ndim)]
        if self.rowwise and sizes:
            sizes[0] = self.rows
        while math.prod(sizes) > MOST_ELEMENTS:
            sizes[self.random.randrange(int(self.rowwise), ndim)] = 2
        return tuple(sizes)

    def dim(self, tensor: Tensor | str) -> int:
        """A dimension of `tensor`, from either end; never dimension 0 of a row-wise program."""
        shape = self.shape_of(tensor) if isinstance(tensor, str) else tensor.shape
        first = int(self.rowwise)
        dim = self.random.randrange(first, len(shape)) if len(shape) > first else len(shape) - 1
        return dim if self.rowwise or self.chance(0.6) else dim - len(shape)

    # -- new tensors ------------------------------------------------------------------------

    def seed(self) -> int:
        self.count += 1
        return self.count

    def attribute(self, text: str) -> str:
        """Run a line of `__init__`; the expression that reads the attribute."""
        exec(text, {**NAMES, "self": self.module})
        self.attributes.append(text)
        return _name_of(text)

    def parameter(self, *shape: int, scale: float = 1.0) -> str:
        """A parameter: sometimes one that is used already, sometimes a frozen one."""
        same = [n for n, p in self.module.named_parameters() if p.shape == shape and "." not in n]
        if same and self.chance(0.5):
            name = self.choose(same)
            if self.chance(0.15):  # tied: one parameter under two names
                return self.attribute(f"self.w{self.seed()} = self.{name}")
            return f"self.{name}"
        number = self.seed()
        frozen = ", requires_grad=False" if self.chance(0.08) else ""
        value = f"real({', '.join(map(str, (number, *shape)))})"
        value += f" * {scale:g}" if scale != 1 else ""
        return self.attribute(f"self.w{number} = nn.Parameter({value}{frozen})")

    def buffer(self, value: str) -> str:
        number = self.seed()
        return self.attribute(f"self.register_buffer('b{number}', {value})")

    def argument(self, value: str) -> str:
        name = f"x{len(self.arguments)}"
        self.arguments[name] = value
        self.values[name] = eval(value, NAMES)
        return name

    def new_real(self, *shape: int) -> str:
        """An argument or a parameter of this shape; a buffer now and then."""
        kind = self.random.random()
        value = f"real({', '.join(map(str, (self.seed(), *shape)))})"
        if self.rowwise or kind < 0.35:
            return self.argument(value)
        return self.buffer(value) if kind < 0.42 else self.parameter(*shape)

    def whole(self, high: int, *shape: int) -> str:
        """Integers in [0, high): given, a buffer's, or what other integers leave."""
        same = [n for n, v in self.values.items() if _is_whole(v) and v.shape == shape]
        if same and self.chance(0.5):
            return f"({self.choose(same)} % {high})"
        value = f"whole({', '.join(map(str, (self.seed(), high, *shape)))})"
        return self.argument(value) if self.rowwise or self.chance(0.7) else self.buffer(value)

    def flags(self, *shape: int) -> str:
        """Flags of this shape: given, or where a value is large."""
        same = [
            name
            for name, value in self.values.items()
            if _is_real(value) and value.shape == shape and far_from(value, 0.1)
        ]
        if same and self.chance(0.6):
            return f"({self.choose(same)} {self.choose('<>')} 0.1)"
        value = f"flags({', '.join(map(str, (self.seed(), *shape)))})"
        return self.argument(value) if self.rowwise or self.chance(0.6) else self.buffer(value)

    # -- tensors that are there -------------------------------------------------------------

    def real(self, low: int = 0, high: int = 4, more: int = 1) -> str:
        """A real value of `low` to `high` dimensions; of at least `more` elements."""
        found = [
            name
            for name, value in self.values.items()
            if _is_real(value) and low <= value.ndim <= high and value.numel() >= more
        ]
        if found and not self.chance(0.07):
            # Late values first, so that programs grow long.
            place = int(len(found) * self.random.random() ** 0.5)
            return found[place] if self.chance(0.8) else self.choose(found[-3:])
        shape = self.shape(self.random.randint(max(low, 1), max(min(high, 4), 1)) if high else 0)
        while math.prod(shape) < more:
            shape = (*shape[:-1], shape[-1] + 1)
        return self.new_real(*shape)

    def any_tensor(self) -> str:
        """A real value mostly, integers or flags sometimes."""
        others = [n for n, v in self.values.items() if isinstance(v, Tensor) and not _is_real(v)]
        return self.choose(others) if others and self.chance(0.15) else self.real(1)

    def fitting(self, name: str) -> str:
        """A real value that broadcasts with `name` to the shape of `name`."""
        shape = self.shape_of(name)
        found = [
            other
            for other, value in self.values.items()
            if _is_real(value)
            and other != name
            and _broadcasts(tuple(value.shape), shape)
            and (value.ndim == len(shape) or not self.rowwise)
        ]
        if found and self.chance(0.7):
            return self.choose(found)
        kept = tuple(1 if self.chance(0.25) else size for size in shape)
        if self.rowwise:
            kept = (1, *kept[1:])
        if self.chance(0.4):
            kept = kept[self.random.randint(0, len(kept)) :]
        return self.parameter(*kept)

    def value(self, expression: str) -> Any:
        """What an expression is now."""
        return eval(expression, {**NAMES, "self": self.module}, dict(self.values))

    def shape_of(self, expression: str) -> tuple[int, ...]:
        found: tuple[int, ...] = tuple(self.value(expression).shape)
        return found

    def far_from(self, expression: str, *points: float) -> bool:
        """Whether no element is so near to a kink that rounding could carry it over."""
        return far_from(self.value(expression), *points)

    # -- lines ------------------------------------------------------------------------------

    def write(self, text: str, family: str) -> bool:
        """Run a line, and keep it if its values are tame: finite, not large, not many."""
        defined = re.match(r"(?:with torch.no_grad\(\): )?((?:v\d+, )*v\d+) = ", text)
        names = tuple(defined[1].split(", ")) if defined else ()
        before = dict(self.values)
        exec(text, {**NAMES, "self": self.module}, self.values)
        if not all(_is_tame(self.values[name]) for name in names):
            self.values = before
            return False
        self.statements.append(Statement(text, names, family))
        return True

    def names(self, count: int) -> str:
        """New names of values, as the left side of an assignment."""
        taken = sum(len(each.defines) for each in self.statements)
        return ", ".join(f"v{taken + number}" for number in range(count))


def far_from(value: Any, *points: float) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return all(float((value.detach() - point).abs().min()) > 1e-6 for point in points)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


def _is_tame(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return True
    if not 0 < value.numel() <= MOST_ELEMENTS or value.ndim > 5:
        return False
    if not value.is_floating_point():
        return value.dtype in (torch.int64, torch.bool)
    return bool(value.isfinite().all()) and float(value.detach().abs().max()) < LARGEST_VALUE


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))
