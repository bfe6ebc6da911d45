"""Sizes and times of reports on whole models: GPT-2, an 80-layer Llama, a T5 of four stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import autoplan
from autoplan.html.page import html_of
from autoplan.plan import Plan
from tests.html.browser import Page

MB = 1_000_000


def _planned(model: nn.Module, rows: int, length: int, **options: object) -> Plan:
    ids = torch.empty((rows, length), dtype=torch.int64, device="meta")
    return autoplan.plan(model, (ids,), {"labels": ids}, **options)


@cache
def gpt2() -> Plan:
    """The 124 million parameters of GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        config = GPT2Config(use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        model = GPT2LMHeadModel(config).to(torch.bfloat16)
    return _planned(model, 8, 1024, devices=8, cluster="a100", parallel={"mesh": {"x": 8}})


@cache
def llama() -> Plan:
    """Llama-3-70B."""
    from benchmarks.measure import build
    from benchmarks.rows import LLAMA_70B

    model = build(LLAMA_70B.with_layers(80))
    return _planned(model, 8, 4096, devices=8, cluster="h100", parallel={"mesh": {"x": 8}},
                    memory="500GB")  # fmt: skip


@cache
def t5() -> Plan:
    """T5-small on four stages of two ranks."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        config = T5Config(decoder_start_token_id=0, dropout_rate=0.0, use_cache=False)
        model = T5ForConditionalGeneration(config)
    parallel = {"pipeline": {"size": 4, "schedule": "1f1b"}, "data": 2}
    return _planned(model, 32, 128, devices=8, cluster="a100", microbatches=8, parallel=parallel)


@pytest.mark.parametrize(
    ("plan", "most"),
    [
        (gpt2, 3 * MB),
        pytest.param(llama, 6 * MB, marks=pytest.mark.slow),
        pytest.param(t5, 3 * MB, marks=pytest.mark.slow),
    ],
    ids=["gpt2", "llama", "t5"],
)
def test_a_whole_model(page: Page, tmp_path: Path, plan: Callable[[], Plan], most: int) -> None:
    text = html_of(plan(), budget_s=1.0)
    assert len(text.encode()) < most
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    assert page.first_paint_ms(path) < 1000
    assert page.errors == []
    drawn = page.run("document.querySelectorAll('.node-box').length")
    assert 4 <= drawn <= 60
    folded = page.run("model.nodes.filter((node) => node.members).map((node) => node.count)")
    assert folded


def test_the_layers_of_gpt2_are_one_node() -> None:
    from autoplan.html.tree import tree_of

    nodes = {node.path: node for node in tree_of(gpt2()).root.walk()}
    assert sum(node.count for path, node in nodes.items() if path.startswith("transformer.h.")
               and path.count(".") == 2 and node.kind == "module") == 12  # fmt: skip
    assert nodes["transformer.h"].count == 1
