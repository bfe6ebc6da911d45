"""Figure: memory over a step, stacked by kind, and what ranks do in it, as SVG without script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from autoplan.errors import PlanFileError
from autoplan.plan import Plan
from autoplan.trace.predicted import predicted
from autoplan.trace.spans import Group, Level, Span
from autoplan.units import seconds, size

COLOURS = {
    "parameters": "#4878a8",
    "gradients": "#d98b3a",
    "optimizer": "#8a6fae",
    "gathered": "#5aa6a6",
    "activations": "#5c9e52",
    "inputs": "#8f8f8f",
    "temporaries": "#c45a5a",
}
"""Of kinds of memory."""
_DOING = {
    "forward": "#4878a8",
    "backward": "#5c9e52",
    "backward_input": "#5c9e52",
    "backward_weight": "#8fc083",
    "recomputation": "#8a6fae",
    "gathering parameters": "#5aa6a6",
    "reducing gradients": "#d98b3a",
    "work on parameters alone": "#5aa6a6",
    "the optimizer's step": "#8f8f8f",
    "once": "#8f8f8f",
    "send": "#c45a5a",
    "microbatches": "#4878a8",
}
_LEFT, _WIDTH, _RIGHT = 170, 640, 20
_MEMORY, _LANE, _GAP = 90, 18, 8
_MOST_RANKS = 16
_LEAST_PX = 0.5


@dataclass(frozen=True)
class Figure:
    """A drawing: notebooks show it, `save` writes it."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the SVG file; PlanFileError where it cannot be written."""
        try:
            Path(path).write_text(self.svg, encoding="utf-8", newline="\n")
        except OSError as error:
            raise PlanFileError(f"cannot write figure {str(path)!r}: {error.strerror}.") from error


def figure(plan: Plan) -> Figure:
    """Memory and timeline of a predicted step: of rank 0, and of each pipeline rank its first one.

    Raises what `save_trace` raises.
    """
    group = predicted(plan)
    names = _ranks(plan, group)
    shown = names[:_MOST_RANKS]
    end_s = max(group.end_s, 1e-12)
    most = max((level.total for level in group.levels), default=0.0)
    parts: list[str] = []
    top = 28.0
    for name in shown:
        levels = [each for each in group.levels if each.counter == f"{name} bytes alive"]
        if levels:
            parts += _memory(name, levels, top, end_s, most)
            top += _MEMORY + _GAP
        for track in (each for each in group.tracks if each.startswith(f"{name} ")):
            own = [span for span in group.spans if span.track == track]
            parts += _lane(track.removeprefix(f"{name} "), own, top, end_s)
            top += _LANE + 2
        top += 2 * _GAP
    parts += _scale(top, end_s)
    top += 26
    parts += _legend(top, bool(group.levels), {span.category for span in group.spans})
    title = f"{plan.model}: a step of {seconds(plan.step_time_s)}, predicted; peak "
    title += size(plan.peak_memory_bytes)
    if len(names) > len(shown):
        title += f"; the first {len(shown)} of {len(names)} pipeline ranks"
    parts.insert(0, _text(0, 14, title, bold=True))
    return Figure(_svg(parts, top + 30))


def _ranks(plan: Plan, group: Group) -> list[str]:
    """Names of ranks that differ: the first one, or the first of each pipeline rank."""
    names = list(dict.fromkeys(_owner(track) for track in group.tracks))
    if plan.pipeline is None:
        return names[:1]
    per = len(names) // plan.pipeline.size
    return names[:: max(1, per)]


def _owner(track: str) -> str:
    """`rank 1 (data 0) sends 2` -> `rank 1 (data 0)`."""
    for lane in (" compute", " communication", " sends"):
        at = track.rfind(lane)
        if at >= 0:
            return track[:at]
    return track


def _x(second: float, end_s: float) -> float:
    return _LEFT + _WIDTH * second / end_s


def _memory(
    name: str, levels: Sequence[Level], top: float, end_s: float, most: float
) -> Iterator[str]:
    """Bytes alive, a step line for each kind on those below it."""
    yield _text(0, top + 12, name, bold=True)
    yield _text(0, top + 28, f"up to {size(max(level.total for level in levels))}")
    bottom = top + _MEMORY
    below = [0.0] * len(levels)
    for kind, colour in COLOURS.items():
        above = [b + level.kinds.get(kind, 0.0) for b, level in zip(below, levels, strict=True)]
        if above != below:
            points = [*_edge(levels, above, end_s, bottom, most)]
            points += reversed([*_edge(levels, below, end_s, bottom, most)])
            spelled = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
            title = f"<title>{escape(kind)}</title>"
            yield f'<polygon points="{spelled}" fill="{colour}" stroke="none">{title}</polygon>'
        below = above
    yield (
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{_LEFT + _WIDTH}" y2="{bottom}" '
        'stroke="currentColor" stroke-width="0.7"/>'
    )


def _edge(
    levels: Sequence[Level], heights: Sequence[float], end_s: float, bottom: float, most: float
) -> Iterator[tuple[float, float]]:
    ends = [*(level.start_s for level in levels[1:]), end_s]
    for level, stop, height in zip(levels, ends, heights, strict=True):
        y = bottom - (_MEMORY - 4) * height / most
        yield _x(level.start_s, end_s), y
        yield _x(max(stop, level.start_s), end_s), y


def _lane(name: str, spans: Iterable[Span], top: float, end_s: float) -> Iterator[str]:
    """A track: what lies inside of an event is drawn lower, and narrow neighbours together."""
    yield _text(0, top + 13, name)
    for span, depth in _merged(spans, end_s):
        if span.category == "bubble":
            continue
        x, width = _x(span.start_s, end_s), _WIDTH * span.time_s / end_s
        inset = min(depth, 1) * 6
        title = escape(f"{span.name}: {seconds(span.time_s)}, {span.category}")
        yield (
            f'<rect x="{x:.2f}" y="{top + inset:.1f}" width="{max(width, 0.3):.2f}" '
            f'height="{_LANE - inset:.1f}" fill="{_DOING.get(span.category, "#8f8f8f")}" '
            f'fill-opacity="{0.9 if depth or name != "compute" else 0.6}">'
            f"<title>{title}</title></rect>"
        )


def _merged(spans: Iterable[Span], end_s: float) -> Iterator[tuple[Span, int]]:
    """Spans with their depth; neighbours of one kind too narrow to be seen are one."""
    least_s = _LEAST_PX * end_s / _WIDTH
    open_ends: list[float] = []
    waiting: tuple[Span, int, int] | None = None
    for span in sorted(spans, key=lambda each: (each.start_s, -each.time_s)):
        while open_ends and open_ends[-1] <= span.start_s + 1e-15:
            open_ends.pop()
        depth = len(open_ends)
        open_ends.append(span.end_s)
        if waiting is not None:
            last, at, count = waiting
            near = span.start_s - last.end_s < least_s and at == depth
            if span.time_s < least_s and near and span.category == last.category:
                whole = span.end_s - last.start_s
                waiting = replace(last, time_s=whole, name=f"{count + 1} in a row"), at, count + 1
                continue
            yield last, at
            waiting = None
        if span.time_s < least_s:
            waiting = span, depth, 1
        else:
            yield span, depth
    if waiting is not None:
        yield waiting[0], waiting[1]


def _scale(top: float, end_s: float) -> Iterator[str]:
    for part in range(5):
        second = end_s * part / 4
        anchor = ("start", "middle", "middle", "middle", "end")[part]
        yield _text(_x(second, end_s), top + 8, seconds(second), anchor=anchor)


def _legend(top: float, memory: bool, doing: set[str]) -> Iterator[str]:
    x = 0.0
    names = [(kind, colour) for kind, colour in COLOURS.items() if memory]
    rows = [names, [(n, c) for n, c in _DOING.items() if n in doing]]
    for number, row in enumerate(rows):
        x, y = 0.0, top + 18 * number
        for name, colour in row:
            yield f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="9" height="9" fill="{colour}"/>'
            yield _text(x + 13, y, name)
            x += 28 + 6.6 * len(name)


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight} '
        f'fill="currentColor">{escape(text)}</text>'
    )


def _svg(parts: Iterable[str], height: float) -> str:
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" height="{height:.0f}" font-family="sans-serif" font-size="12">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
