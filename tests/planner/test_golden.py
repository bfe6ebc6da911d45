"""Golden text: the report and the emitted program of a two-layer MLP on two ranks.

Renew both with: env AUTOPLAN_RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/planner/test_golden.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import autoplan
from tests.planner.models import MLP

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def module() -> autoplan.ParallelModule:
    """Megatron's cut: the first layer's columns, the second one's rows, one all-reduce between."""
    torch.manual_seed(0)
    return autoplan.parallelize(
        MLP(4, 8),
        (torch.randn(6, 4),),
        devices=2,
        cluster="cpu",
        parallel={"tensor": {"size": 2, "mode": "1d"}},
        hints={"up": "S(1)"},
    )


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("AUTOPLAN_RENEW_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), "see the top of this file for how to renew it"


def masked(report: str) -> str:
    """The report without how long the solver took."""
    text, count = re.subn(r"solved in [\d.,]+ \w+", "solved in (some time)", report)
    assert count == 1
    return text


def test_report(module: autoplan.ParallelModule) -> None:
    compare("report.txt", masked(module.plan.report()))


def test_code(module: autoplan.ParallelModule) -> None:
    compare("code.txt", module.code)
