"""Random modules under random legal plans compute what they compute on one device."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
import torch

import autoplan.planning
import autoplan.search
from autoplan.strategies import RULES
from autoplan.strategies.rule import Rule
from tests.fuzz.draft import Program, Statement
from tests.fuzz.families import FAMILIES
from tests.fuzz.generator import random_module
from tests.fuzz.run import Case, case_of, program_of, run_case
from tests.fuzz.shrink import shrink

CASES = 200
AT_ONCE = 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("first", range(0, CASES, AT_ONCE))
def test_random_modules_under_random_plans(first: int) -> None:
    failed = []
    skipped = 0
    for number in range(first, first + AT_ONCE):
        outcome = run_case(case_of(number))
        skipped += outcome.kind == "skipped"
        if outcome.kind == "failed":
            failed.append(f"python -m tests.fuzz --case {number} --shrink  # {outcome.text}")
    assert not failed, "\n".join(failed)
    assert skipped <= AT_ONCE // 5


def test_a_case_is_the_same_whenever_it_is_run() -> None:
    for number in range(10):
        assert case_of(number) == case_of(number)
        assert program_of(case_of(number)) == program_of(case_of(number))
    assert len({program_of(case_of(number)).text for number in range(10)}) == 10


def test_programs_are_plain_python_that_says_all() -> None:
    for number in range(20):
        program = program_of(case_of(number))
        ast.parse(program.text)
        assert all(name in program.text for name in program.arguments)


def test_programs_are_made_of_every_family() -> None:
    seen: set[str] = set()
    for seed in range(150):
        seen |= {each.family for each in random_module(seed, 14)[-1].statements}
    assert seen == set(FAMILIES)


def test_a_wrong_rule_is_found_and_the_program_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """tanh is not linear: of addends it makes something else."""
    wrong = {**RULES, "aten.tanh.default": Rule("*b -> *b", partial=(frozenset({0}),))}
    for module in (autoplan.planning, autoplan.search):
        monkeypatch.setattr(module, "rules_in_force", lambda: wrong)
    lines = ("x0 @ self.w1", "v0.tanh()", "v1.flip(0)", "x0.cos()")
    program = Program(
        ("self.w1 = nn.Parameter(real(1, 6, 5))",),
        {"x0": "real(0, 4, 6)"},
        tuple(Statement(f"v{n} = {line}", (f"v{n}",), "") for n, line in enumerate(lines)),
        "(v2, v3)",
    )
    case = Case(0, (2,), "verify", 4)
    outcomes = [run_case(case, program, seed) for seed in range(30)]
    failed = [each for each in outcomes if each.kind == "failed"]
    assert failed
    smaller, outcome = shrink(case, program, failed[0])
    assert outcome.kind == "failed"
    [line] = smaller.statements
    assert line.text.endswith(".tanh()")
