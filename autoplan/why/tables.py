"""Tables: rows of text in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    indent: str = "  ",
) -> str:
    """Lines of columns two spaces apart, the `right` ones flush right; without a head if empty."""
    lines = [*([head] if any(head) else []), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        indent
        + "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
