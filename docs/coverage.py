"""Which ops the model families use, and which of them have a rule: writes docs/coverage.md.

    python -m docs.coverage             # captures every family and counts proofs: minutes
    python -m docs.coverage --render    # docs/coverage.md again, from docs/coverage.json

What is counted lies in docs/coverage.json; whether an op has a rule is always read from the rules.
"""

from __future__ import annotations

import argparse
import json
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autoplan.annotate import annotate
from autoplan.capture import capture
from autoplan.errors import AutoplanError
from autoplan.mesh import Mesh
from autoplan.proof import observe
from autoplan.strategies import RULES
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import OpCall, Rule

FOLDER = Path(__file__).parent
DATA, PAGE = FOLDER / "coverage.json", FOLDER / "coverage.md"
MESHES = (Mesh.of(d=2), Mesh.of(d=4), Mesh.of(a=2, b=2))
"""Those of tests/strategies/test_proofs.py."""

_WIDTH = 72
"""Letters of a rule's text in the table; a recurrent layer has a tensor for every weight."""

Data = dict[str, Any]


# -- what is counted ------------------------------------------------------------------------


def count() -> Data:
    """Capture every family, and count the candidates that the examples of each op prove."""
    from tests.zoo.families import every_family, seeded

    families: dict[str, list[str]] = {}
    targets: defaultdict[str, list[str]] = defaultdict(list)
    failed: list[str] = []
    for name, family in sorted(every_family().items()):
        try:
            captured = capture(*seeded(name))
        except (AutoplanError, ImportError) as error:  # refused, or a library is not installed
            print(f"{name}: {error}", flush=True)
            failed.append(name)
            continue
        families.setdefault(family.source, []).append(name)
        for target in sorted(set(_targets(captured.graph))):
            targets[target].append(name)
        print(name, flush=True)
    proofs = _proofs(set(targets))
    return {
        "families": families,
        "failed": failed,
        "ops": {
            target: {"families": len(names), **proofs.get(target, {})}
            for target, names in sorted(targets.items())
        },
    }


def _targets(graph: torch.fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            yield str(node.target)


def _proofs(targets: set[str]) -> dict[str, Data]:
    """Of each op with a rule: the candidates that its examples prove, and the rule on the example
    with the most indices."""
    from tests.strategies.examples import EXAMPLES

    candidates: Counter[str] = Counter()
    shown: dict[str, tuple[int, str]] = {}
    for example in EXAMPLES:
        if example.op not in targets:
            continue
        captured = observe(example.fn, *example.tensors, reference=example.reference).captured
        for mesh in MESHES:
            sites = annotate(captured, mesh, RULES).sites
            [site] = [each for each in sites if each.kind == "op"]
            candidates[example.op] += len(site.candidates)
        assert site.call is not None
        assert site.bound is not None
        this = (len(site.bound.indices), spelled(RULES[example.op], site.call))
        shown[example.op] = max(this, shown.get(example.op, (-1, "")), key=lambda each: each[0])
    return {op: {"candidates": candidates[op], "rule": text} for op, (_, text) in shown.items()}


def spelled(rule: Rule, call: OpCall) -> str:
    """The rule's notation on one call, as text."""
    notation = rule.notation if isinstance(rule.notation, str) else rule.notation(call)
    if isinstance(notation, Bound):
        inputs, outputs = (
            ", ".join(" ".join(index or "[.]" for index in dims) for dims in tensors)
            for tensors in (notation.inputs, notation.outputs)
        )
        notation = f"{inputs} -> {outputs}"
    return str(notation)


def dumped(data: Data) -> str:
    """`data` as JSON, one op a line."""
    ops = [f"{json.dumps(op)}: {json.dumps(row)}" for op, row in data["ops"].items()]
    rest = [f"{json.dumps(key)}: {json.dumps(data[key])}" for key in ("families", "failed")]
    return "{" + ",\n".join([*rest, '"ops": {\n' + ",\n".join(ops) + "}}\n"])


# -- the page -------------------------------------------------------------------------------


def render(data: Data, rules: Mapping[str, Rule] = RULES) -> str:
    """The page of `data`, by the rules of today."""
    ops: dict[str, Data] = data["ops"]
    families: dict[str, list[str]] = data["families"]
    ruled = [op for op in ops if op in rules]
    missing = [op for op in ops if op not in rules]
    num_families = sum(map(len, families.values()))
    candidates = sum(ops[op].get("candidates", 0) for op in ruled)
    lines = [
        "# Which ops have a rule",
        "",
        "Written by `python -m docs.coverage`, which captures the families of `tests/zoo/` as they",
        f"are trained, and counts their distinct ops: {num_families} families use {len(ops)},",
        f"and {len(ruled)} of these have a rule. The examples in `tests/strategies/` prove them in",
        f"{candidates:,} candidates, on meshes of 2, 4 and 2 x 2 devices.",
        "",
        "## Left replicated",
        "",
    ]
    if missing:
        lines += [f"- `{op}`: families: {ops[op]['families']}" for op in missing]
    else:
        lines += ["No op of these families runs replicated for want of a rule."]
    lines += [
        "",
        "## Split",
        "",
        "A rule is shown in index notation (`strategies/notation.py`), on the example that has the",
        "most indices; brackets are whole on every rank. *program*: the op on shards is not right",
        "as it stands, so the rule brings the program that is.",
        "",
        "| op | families | rule | candidates |",
        "|---|---|---|---|",
    ]
    for op in sorted(ruled, key=lambda op: (-ops[op]["families"], op)):
        row = ops[op]
        text = row.get("rule", "")
        text = f"{text[:_WIDTH]} ..." if len(text) > _WIDTH else text
        program = " *program*" if rules[op].program is not None else ""
        name = op.removeprefix("aten.")
        lines.append(
            f"| `{name}` | {row['families']} | `{text}`{program} | {row.get('candidates', 0)} |"
        )
    lines += ["", "## Families", ""]
    for source, names in sorted(families.items()):
        lines += [f"{source} ({len(names)}): {', '.join(sorted(names))}.", ""]
    failed: list[str] = data["failed"]
    if failed:
        lines += [f"Not captured, and not counted ({len(failed)}): {', '.join(failed)}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--render", action="store_true", help="only write the page again")
    if not parser.parse_args().render:
        torch.set_num_threads(1)
        DATA.write_text(dumped(count()))
    PAGE.write_text(render(json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
