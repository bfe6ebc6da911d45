"""Markup: text, tables and lists as HTML, every string of a plan escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A table cell; `value`: what a numeric column is sorted by, `code`: shown as code."""

    text: str
    value: float | None = None
    code: bool = False

    def __str__(self) -> str:
        text = escape(self.text)
        if self.code and text:
            text = f"<code>{breakable(self.text)}</code>"
        sorted_by = "" if self.value is None else f' data-value="{self.value:.9g}"'
        return f"<td{' class=number' if self.value is not None else ''}{sorted_by}>{text}</td>"


def breakable(text: str) -> str:
    """Escaped, with places to break a long path at: behind its dots and slashes."""
    return escape(text).replace(".", ".<wbr>").replace("/", "/<wbr>").replace("_", "_<wbr>")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    *,
    identifier: str = "",
    numeric: Iterable[int] = (),
    sortable: bool = False,
) -> str:
    """A table in a region of its own that scrolls sideways; its first cells are row headers."""
    right = set(numeric)
    columns = "".join(_head(text, at in right, sortable) for at, text in enumerate(head))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    name = f' id="{identifier}"' if identifier else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, True)}">'
        f"<table{name}><caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(text: str, right: bool, sortable: bool) -> str:
    kind = " class=number" if right else ""
    if not sortable:
        return f'<th scope="col"{kind}>{escape(text)}</th>'
    return (
        f'<th scope="col"{kind} aria-sort="none"><button type="button">{escape(text)}'
        '<span class="arrow" aria-hidden="true"></span></button></th>'
    )


def _cell(cell: Cell | str) -> str:
    return str(cell if isinstance(cell, Cell) else Cell(cell))


def paragraphs(lines: Iterable[str]) -> str:
    """Plain text, a paragraph a line."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def bullets(lines: Iterable[str], kind: str = "ul") -> str:
    """A list of plain texts."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<{kind}>{items}</{kind}>" if items else ""


def section(identifier: str, title: str, *parts: str) -> str:
    """A section with its heading."""
    return (
        f'<section id="{identifier}" aria-labelledby="{identifier}-title">'
        f'<h2 id="{identifier}-title">{escape(title)}</h2>{"".join(parts)}</section>'
    )
