"""Data: what the scripts of the report draw, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from autoplan.errors import ConfigError
from autoplan.html.alternatives import Alternatives
from autoplan.html.memory import bars_of, courses_of
from autoplan.html.tree import Node, Tree
from autoplan.html.wiring import Asked, Wiring
from autoplan.html.words import layout_words
from autoplan.pipelining.joined import run_of
from autoplan.plan import OperationRow, Plan, TensorRow
from autoplan.policies import POLICY_TEXTS
from autoplan.repeated import is_tied
from autoplan.report import memory_words
from autoplan.units import seconds, size
from autoplan.why.traffic import Transfer

_MOST_EVENTS = 6000


class Graph:
    """The tree as rows for JSON; every text that is said often has a number in `texts`."""

    def __init__(
        self, plan: Plan, tree: Tree, wiring: Wiring, alternatives: Alternatives | None
    ) -> None:
        self.plan, self.tree, self.wiring, self.alternatives = plan, tree, wiring, alternatives
        self.texts: dict[str, int] = {}
        self.numbers = {node: number for number, node in enumerate(tree.root.walk())}
        self.layouts = self._layouts()

    def rows(self) -> dict[str, Any]:
        """Nodes by number, edges, texts, and the layouts that colours stand for."""
        above = {child: node for node in self.numbers for child in node.children}
        nodes = [self._node(node, above.get(node)) for node in self.numbers]
        edges = [
            [self.numbers[a], self.numbers[b], sum(t.time_s for t in moved), self._moved(moved)]
            for (a, b), moved in self.wiring.edges.items()
            if a in self.numbers and b in self.numbers
        ]
        layouts = [
            {"text": text, "words": layout_words(text, axes)} for (text, axes) in self.layouts
        ]
        return {
            "nodes": nodes,
            "edges": edges,
            "layouts": layouts,
            "texts": list(self.texts),
        }

    def _layouts(self) -> dict[tuple[str, tuple[str, ...]], int]:
        """Layouts of op results, those of most seconds first."""
        spent: dict[tuple[str, tuple[str, ...]], float] = {}
        for node in self.numbers:
            if isinstance(node.row, OperationRow) and not node.is_view:
                key = node.row.layout.replace("B/P", "B"), self._axes(node)
                spent[key] = spent.get(key, 0.0) + node.seconds()
        return {key: at for at, key in enumerate(sorted(spent, key=lambda key: -spent[key]))}

    def _axes(self, node: Node) -> tuple[str, ...]:
        return self.plan.stages[node.stage].axes if self.plan.stages else self.plan.axes

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def _moved(self, moved: Iterable[Transfer]) -> list[int]:
        """Collectives in words, equal ones together."""
        groups: dict[tuple[object, ...], list[Transfer]] = {}
        for each in moved:
            key = (each.kind, each.bytes, each.axis, each.phase, each.direction, each.shared)
            groups.setdefault(key, []).append(each)
        lines = []
        for (kind, length, axis, phase, direction, shared), members in groups.items():
            count = sum(each.count for each in members)
            time_s = sum(each.time_s for each in members)
            bucket = ", its part of a bucket" if shared else ""
            lines.append(
                f"{count} × {str(kind).replace('_', '-')} of {size(float(str(length)))} over "
                f"“{axis}”, {direction}, {phase}{bucket}: {seconds(time_s)}"
            )
        return [self._text(line) for line in lines]

    def _node(self, node: Node, above: Node | None) -> dict[str, Any]:
        row: dict[str, Any] = {"k": node.kind, "name": node.name, "path": node.path}
        if above is not None:
            row["up"] = self.numbers[above]
        if node.members:
            row["members"] = list(node.members)
        if self.plan.stages:
            row["stage"] = node.stage
        if node.recomputed:
            row["again"] = 1
        if isinstance(node.row, OperationRow):
            row |= self._operation(node, node.row)
        elif isinstance(node.row, TensorRow):
            row |= self._tensor(node, node.row)
        for key, moved in (("moves", self.wiring.at), ("between", self.wiring.between)):
            if moved.get(node):
                row[key] = self._moved(moved[node])
                row[f"{key}_s"] = sum(each.time_s for each in moved[node])
        if self.alternatives is not None and len(self.alternatives.found.get(node, ())) > 1:
            row["alt"] = [
                [
                    self._text(each.choice),
                    self._text(layout_words(each.layout, self._axes(node))),
                    each.time_s,
                    each.memory_bytes,
                    int(each.fits),
                    int(each.is_plan),
                ]
                for each in self.alternatives.found[node]
            ]
            if node in self.alternatives.like:
                row["like"] = self.alternatives.like[node]
            if self.alternatives.more[node]:
                row["more"] = self.alternatives.more[node]
        return row

    def _operation(self, node: Node, row: OperationRow) -> dict[str, Any]:
        found: dict[str, Any] = {
            "op": self._text(row.op),
            "choice": self._text(row.choice),
            "layout": self._text(row.layout),
            "words": self._text(layout_words(row.layout, self._axes(node))),
            "shape": self._text(str(list(row.shape))),
            "f": row.forward_s,
            "b": row.backward_s,
        }
        if node.is_view:
            found["view"] = 1
        else:
            found["lay"] = self.layouts[row.layout.replace("B/P", "B"), self._axes(node)]
        if not row.has_rule:
            found["norule"] = 1
        return found

    def _tensor(self, node: Node, row: TensorRow) -> dict[str, Any]:
        axes = self._axes(node)
        found: dict[str, Any] = {
            "layout": self._text(row.layout),
            "words": self._text(layout_words(row.layout, axes)),
            "shape": self._text(f"{row.dtype} {list(row.shape)}"),
            "local": self._text(str(list(row.local_shape))),
        }
        if is_tied(self.plan, row, node.stage):
            found["tied"] = 1
        if row.use and row.use.replace("B/P", "B") != row.layout:
            found["use"] = self._text(layout_words(row.use, axes) + POLICY_TEXTS[row.policy])
        return found


def charts(plan: Plan, asked: Sequence[Asked]) -> dict[str, Any]:
    """Memory, schedule and baselines, as the charts have them."""
    bars, note = bars_of(plan, asked)
    return {
        "kinds": list(memory_words(plan).values()),
        "training": plan.training,
        "bars": [[bar.name, bar.amounts, bar.memory.moment] for bar in bars],
        "bars_note": note,
        "limit": plan.memory_limit_bytes,
        "courses": [
            {
                "name": each.name,
                "amounts": each.amounts,
                "moments": each.moments,
                "phases": each.phases,
            }
            for each in courses_of(plan, asked)
        ],
        "gantt": gantt(plan),
        "step_s": plan.step_time_s,
        "baselines": [
            ["this plan", plan.step_time_s, plan.peak_memory_bytes],
            *(
                [each.name, each.step_time_s, each.peak_memory_bytes]
                for each in plan.baselines
                if each.step_time_s is not None
            ),
        ],
        "axes": list(plan.axes),
    }


def gantt(plan: Plan) -> dict[str, Any] | None:
    """A step's events by rank: [kind, stage, microbatch, start, end]; None where there is none."""
    if plan.pipeline is None:
        return None
    if plan.microbatches * len(plan.stages) > _MOST_EVENTS // 2:
        return {"many": plan.microbatches}
    try:
        run = run_of(plan)
    except ConfigError:
        return None
    kinds = ("forward", "backward", "backward_input", "backward_weight")
    ranks = [
        [
            [kinds.index(e.event.kind), e.event.stage, e.event.microbatch, e.start_s, e.end_s]
            for e in events
        ]
        for events in run.events
    ]
    names = {row.rank: list(row.ranks) for row in plan.pipeline.stages}
    return {
        "ranks": ranks,
        "names": [names[rank] for rank in range(run.num_ranks)],
        "end_s": run.makespan_s,
        "ends": list(run.ends_s),
        "after": list(run.after_s),
        "before": list(run.before_s),
        "busy": list(run.busy_s),
        "stages": run.num_stages,
    }
