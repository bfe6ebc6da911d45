"""The fenced blocks of a page, and what is done with each: nothing is passed over in silence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

Kind = Literal["python", "command", "said", "file", "not run"]

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)
_TITLE = re.compile(r'title="([^"]+)"')
_MARK = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is that of its fence; `name` the file's, or why it is not run."""

    kind: Kind
    text: str
    line: int
    name: str = ""


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page's text, in order.

    python: run. console, sh: commands; `$ ` stands before each in console, and what it says after
    it. text: what the block before it says, line by line, `...` for anything. Any block with a
    `title` is a file, written beside what runs. A comment `<!-- not run: why -->` before a block
    leaves it out. Raises ValueError for any other block, and for a fence that never ends.
    """
    found = []
    for match in _FENCE.finditer(page):
        indent, _, info, body = match.groups()
        line = page.count("\n", 0, match.start()) + 1
        text = re.sub(rf"^{indent}", "", body, flags=re.M)
        kind, name = _kind(info, page[: match.start()], line)
        found.append(Block(kind, text, line, name))
    fences = len(re.findall(r"^ *(?:`{3,}|~{3,})", page, re.M))
    if fences != 2 * len(found):
        raise ValueError(f"{fences} fences, which are not two for each of {len(found)} blocks.")
    return found


def _kind(info: str, before: str, line: int) -> tuple[Kind, str]:
    marked, titled = _MARK.search(before), _TITLE.search(info)
    language = (info.split() or [""])[0]
    if marked:
        return "not run", marked.group(1)
    if titled:
        return "file", titled.group(1)
    if language == "python":
        return "python", ""
    if language in ("console", "sh"):
        return "command", ""
    if language == "text":
        return "said", ""
    raise ValueError(
        f"line {line}: a block of {language or 'nothing'!r} is neither run nor a file; give it a "
        "title, call it text if the block before it says it, or write <!-- not run: why --> above."
    )


def lines_said(line: str, text: str) -> int:
    """Where `text` ends after saying a line, whose `...` stand for anything; -1 if it does not."""
    words = r"\s+".join(map(re.escape, line.split()))
    found = re.search(words.replace(r"\.\.\.", ".*?"), text, re.S)
    return -1 if found is None else found.end()
