"""Peaks of training steps on real ranks: what every rank of `test_peak_memory` runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import autoplan
from tests.models import Example
from tests.runtime.live_bytes import LiveBytes, Peak


@dataclass(frozen=True)
class Case:
    """A model of transformers under one plan.

    size: "activations" for a large batch of narrow layers, "weights" for the opposite.
    scale: of every width; the parameters grow with its square. batches: times the usual rows.
    options: what `parallelize` is told beside devices.
    """

    model: str
    size: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    name: str = "own plan"
    dropout: float = 0.1
    scale: int = 1
    layers: int = 2
    batches: int = 1

    def __str__(self) -> str:
        return f"{self.model}, {self.size}, {self.name}"


@dataclass(frozen=True)
class Outcome:
    """One case on one rank, in bytes: the second step's peak, and what the plan says of it.

    what: the moment of the peak, and what was alive then.
    """

    measured: int
    predicted: int
    what: str

    @property
    def error(self) -> float:
        """Relative to what was measured; positive where the plan says too much."""
        return self.predicted / self.measured - 1.0


_MEASURED = 3
"""Steps."""


def measure(rank: int, cases: Sequence[Case], world_size: int) -> list[Outcome]:
    return [measure_one(case, world_size) for case in cases]


def measure_one(case: Case, world_size: int) -> Outcome:
    """The peak of a step, beside what the plan says."""
    plan, peak = least_peak(case, world_size)
    return Outcome(peak.num_bytes, plan.peak_memory_bytes, f"{plan.memory}\n{peak.table(15)}")


def least_peak(
    case: Case, world_size: int, first: AbstractContextManager[Any] | None = None
) -> tuple[autoplan.Plan, Peak]:
    """Train some steps; the `first` one is not measured: it makes the optimizer's state.

    Of the others the least peak counts: gloo's own thread lets go of a finished collective when it
    gets to it, so that a busy machine may hold what the step has done with.
    """
    torch.manual_seed(0)
    model, (args, kwargs) = MODELS[case.model](case)
    module = autoplan.parallelize(
        model, args, kwargs, devices=world_size, cluster="cpu", **case.options
    )
    del model
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    with first or nullcontext():
        module.train_step(args, kwargs)
    optimizer.step()
    optimizer.zero_grad()
    held = [*module.parameters(), *module.buffers(), optimizer.state_dict()["state"], args, kwargs]
    peaks = []
    for _ in range(_MEASURED):
        with LiveBytes(held) as meter:
            meter.mark("train_step")
            module.train_step(args, kwargs)
            meter.mark("optimizer")
            optimizer.step()
        optimizer.zero_grad()
        peaks.append(meter.peak())
    return module.plan, min(peaks, key=lambda each: each.num_bytes)


# -- models ---------------------------------------------------------------------------------


def _sizes(case: Case) -> tuple[int, int, int]:
    """Width, sequence length, rows."""
    width, length, rows = {"activations": (64, 64, 8), "weights": (192, 16, 4)}[case.size]
    return width * case.scale, length, rows * case.batches


def _ids(case: Case, vocabulary: int) -> Tensor:
    _, length, rows = _sizes(case)
    return torch.randint(0, vocabulary, (rows, length))


def _gpt2(case: Case) -> tuple[nn.Module, Example]:
    from transformers import GPT2Config, GPT2LMHeadModel

    width, length, _ = _sizes(case)
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), case.dropout)
    config = GPT2Config(
        n_layer=case.layers,
        n_embd=width,
        n_head=4,
        n_positions=length,
        vocab_size=1024,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        **rates,
    )
    ids = _ids(case, 1024)
    return GPT2LMHeadModel(config).train(), ((ids,), {"labels": ids})


def _bert(case: Case) -> tuple[nn.Module, Example]:
    from transformers import BertConfig, BertForMaskedLM

    width, length, _ = _sizes(case)
    config = BertConfig(
        num_hidden_layers=case.layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=4,
        vocab_size=1024,
        max_position_embeddings=length,
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.dropout,
    )
    ids = _ids(case, 1024)
    return BertForMaskedLM(config).train(), ((ids,), {"labels": ids})


def _vit(case: Case) -> tuple[nn.Module, Example]:
    from transformers import ViTConfig, ViTForImageClassification

    width, length, rows = _sizes(case)
    side = 8 * int(length**0.5)
    config = ViTConfig(
        num_hidden_layers=case.layers + 1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=4,
        image_size=side,
        patch_size=8,
        num_labels=64,
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.dropout,
    )
    images, labels = torch.randn(rows, 3, side, side), torch.randint(0, 64, (rows,))
    return ViTForImageClassification(config).train(), ((images,), {"labels": labels})


def _llama(case: Case) -> tuple[nn.Module, Example]:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, length, _ = _sizes(case)
    config = LlamaConfig(
        num_hidden_layers=case.layers,
        hidden_size=width,
        intermediate_size=2 * width + width // 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1024,
        max_position_embeddings=length,
        use_cache=False,
    )
    ids = _ids(case, 1024)
    return LlamaForCausalLM(config).train(), ((ids,), {"labels": ids})


MODELS = {"gpt2": _gpt2, "bert": _bert, "vit": _vit, "llama": _llama}
