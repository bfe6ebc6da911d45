"""`python -m tests.fuzz 1000`: so many cases; `--case 123`: one of them, in full."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import torch

from tests.fuzz.run import Outcome, case_of, program_of, run_case
from tests.fuzz.shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this one alone, and print all about it")
    parser.add_argument("--shrink", action="store_true", help="also look for a smaller failure")
    given = parser.parse_args()
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings
    if given.case is not None:
        return _one(given.case, given.shrink)
    return _many(range(given.first, given.first + given.count))


def _one(number: int, smaller: bool) -> int:
    case = case_of(number)
    program = program_of(case)
    print(f"{case}\n\n{program.text}")
    outcome = run_case(case, program)
    if outcome.kind == "failed" and smaller:
        program, outcome = shrink(case, program, outcome)
        print(f"# fails still:\n{program.text}")
    print(f"{outcome.plan}\n{outcome.error}\n{outcome.kind}: {outcome.text}")
    return int(outcome.kind == "failed")


def _many(numbers: range) -> int:
    start = time.monotonic()
    kinds: Counter[str] = Counter()
    for number in numbers:
        outcome = run_case(case_of(number))
        kinds[outcome.kind] += 1
        _say(number, outcome)
    print(
        f"{len(numbers)} cases in {time.monotonic() - start:.0f} s: {kinds['equal']} equal, "
        f"{kinds['skipped']} skipped, {kinds['failed']} failed",
        flush=True,
    )
    return int(kinds["failed"] > 0)


def _say(number: int, outcome: Outcome) -> None:
    if outcome.kind == "equal":
        return
    print(f"{outcome.kind}: {case_of(number)}: {' '.join(outcome.text.split())[:300]}")
    if outcome.kind == "failed":
        print(f"    python -m tests.fuzz --case {number}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
