"""What a family of ops is: a function that writes the expression of one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.draft import Draft


@dataclass(frozen=True)
class Family:
    """`make(draft)`: an expression, or a whole line where it holds `=`; None where nothing fits.

    `results`: how many values the expression gives. `rowwise`: rows of the batch stay apart.
    """

    make: Callable[[Draft], str | tuple[str, int] | None]
    weight: float
    rowwise: bool
    writes: bool


FAMILIES: dict[str, Family] = {}


def family(
    weight: float = 1.0, rowwise: bool = False, writes: bool = False
) -> Callable[..., Callable[..., str | tuple[str, int] | None]]:
    """Registers a maker under its name; `writes`: it gives a line that changes tensors in place."""

    def register(
        make: Callable[[Draft], str | tuple[str, int] | None],
    ) -> Callable[[Draft], str | tuple[str, int] | None]:
        assert make.__name__ not in FAMILIES
        FAMILIES[make.__name__] = Family(make, weight, rowwise, writes)
        return make

    return register
