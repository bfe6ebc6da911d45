"""docs/capabilities.md: what autoplan promises, and the tests that show each promise.

    python -m docs.capabilities

The promises are listed here. Their tests are those of tests/capabilities whose names begin with
their row: `test_row_07_naive_pipeline`, `test_rows_26_to_29_equal_one_device`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
TESTS = Path(__file__).parents[1] / "tests" / "capabilities"

CAPABILITIES: Mapping[str, str] = {
    "1": "a huge linear layer, its columns split",
    "2": "an MLP split in two dimensions, data 2 × tensor 2, found by the planner or by pins alone",
    "3": "layouts given by the user, as text and as objects; axes of size 1 collapse",
    "4": "logical and local shape of any tensor in the report",
    "5": "a layer, or a free parameter, placed on a pipeline stage",
    "6": "activations move between stages without an edit of the model",
    "7": "naive pipeline",
    "8": "GPipe",
    "9": "1F1B: few microbatches in flight, GPipe's gradients, a lower peak",
    "10": "interleaved 1F1B: a smaller bubble",
    "11": "stage ids of every block, stray layers included",
    "12": "recomputation: equal gradients, a lower peak, predicted and measured",
    "13": "gradient accumulation",
    "14": "BERT, GPT-2, ViT and T5 at any size",
    "15": "plain data parallelism shown beside every plan",
    "16": "pure data, tensor or pipeline parallelism on 8 devices",
    "17": "data 2 × tensor 4, its groups printed",
    "18": "data 2 × pipeline 4, tensor 2 × pipeline 4",
    "19": "data 2 × tensor 2 × pipeline 2, equal to one process after AdamW steps",
    "20": "the data size inferred; impossible products refused with their numbers",
    "21": "a stage map of the user's own; the solver's cut is never worse",
    "22": "automatic and actual stage ids saved with the plan",
    "23": "`key=value` after a config file; an unknown key suggests the nearest",
    "24": "the config as a dict, parts of it left out",
    "25": "bad configs refused with the reason",
    "26": "tensor parallelism in one dimension",
    "27": "tensor parallelism in two dimensions (SUMMA)",
    "28": "tensor parallelism in 2.5 dimensions",
    "29": "tensor parallelism in three dimensions",
    "30": "ring attention: no rank ever holds all keys or values",
    "31": "a pipeline cut by hand reproduces; the solver's is never slower",
    "32": "a training step in one call",
    "33": "gradient handlers",
    "34": "one product three ways: data, model, two placements",
    "35": "another strategy on each stage",
    "36": "everything on a CPU",
    "37": "one node and several",
    "38": "the bytes that each way to compute one product moves",
    "A": "any `nn.Module` as it is",
    "B": "`verify`: forward, gradients and optimizer steps against the original, in float64",
    "C": "a certificate: bound and gap of every plan",
    "D": "simulation of all ranks in one process",
    "E": "the price of a pin; the smallest set of hints and limits that conflict",
    "F": "peak memory as a limit, predicted within 10% of what is measured",
    "G": "one search over layouts, stages, schedules, recomputation, ZeRO and microbatches",
    "H": "a plan as a text file: edited, compared by meaning, kept when the model changes",
    "I": "elastic training: fewer devices, the same loss curve",
    "J": "calibration: the cost model fitted to this machine",
}

_ROW = re.compile(r"test_row_(\d+|[a-z])_")
_ROWS = re.compile(r"test_rows_(\d+)_to_(\d+)_")


def rows_of(test: str) -> list[str]:
    """The rows that a test shows by its name; empty if none."""
    several = _ROWS.match(test)
    if several:
        first, last = map(int, several.groups())
        return [str(row) for row in range(first, last + 1)]
    one = _ROW.match(test)
    return [one.group(1).lstrip("0").upper()] if one else []


def by_row(files: Iterable[Path]) -> dict[str, list[tuple[str, str]]]:
    """File and name of every test of each row. Raises ValueError for a row that is not listed."""
    found: dict[str, list[tuple[str, str]]] = {row: [] for row in CAPABILITIES}
    for path in sorted(files):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for row in rows_of(node.name):
                if row not in found:
                    raise ValueError(
                        f"{path.name}: {node.name} shows row {row}, which has no title"
                    )
                found[row].append((path.name, node.name))
    return found


def render(found: Mapping[str, list[tuple[str, str]]]) -> str:
    """The page of a table; a capability without a test says so."""
    shown = sum(1 for tests in found.values() if tests)
    lines = [
        "# Capabilities",
        "",
        "<!-- Written by `python -m docs.capabilities` from tests/capabilities. -->",
        "",
        "Each row is a promise with the tests that show it, in simulation and, where a name says",
        "so, on real gloo ranks. The tests are in `tests/capabilities/` and run with `make test`;",
        f"{shown} of {len(found)} rows have one. Rows 1 to 38 are what libraries for parallel",
        "training promise their users; A to J are autoplan's own.",
        "",
        "| row | capability | tests |",
        "|---|---|---|",
    ]
    for row, title in CAPABILITIES.items():
        names = [f"`{name}`" for name in dict.fromkeys(name for _, name in found[row])]
        lines.append(f"| {row} | {title} | {', '.join(names) or '**not yet**'} |")
    files = sorted({file for tests in found.values() for file, _ in tests})
    lines += ["", "## Where the tests are", "", "| file | rows |", "|---|---|"]
    for file in files:
        rows = [row for row, tests in found.items() if any(name == file for name, _ in tests)]
        lines.append(f"| `{file}` | {', '.join(rows)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    PAGE.write_text(render(by_row(TESTS.glob("test_*.py"))), encoding="utf-8")


if __name__ == "__main__":
    main()
