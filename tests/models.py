"""Small models and batches that the tests plan and train; importing this stays cheap."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor, nn

from autoplan.cost_models import Cluster, load_profile
from autoplan.cost_models.profile import Quantity

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""

VOCABULARY = 101  # prime: no number of ranks divides it


def gpt2(dropout: float = 0.0, **config: Any) -> nn.Module:
    """A GPT-2 with tied embeddings, in float64 and train mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    given = {
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 4,
        "n_positions": 32,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_pdrop": dropout,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        **config,
    }
    return GPT2LMHeadModel(GPT2Config(**given)).double().train()


def llama(**config: Any) -> nn.Module:
    """A Llama with grouped queries, in float64 and train mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    given = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        **config,
    }
    return LlamaForCausalLM(LlamaConfig(**given)).double().train()


class Mlp(nn.Module):
    """Two products around a GELU; the output, or its mean squared error where `y` is given."""

    def __init__(self, width: int = 12, hidden: int = 32, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, dtype=dtype)
        self.fc2 = nn.Linear(hidden, width, dtype=dtype)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.fc2(F.gelu(self.fc1(x)))
        return out if y is None else F.mse_loss(out, y)


class FreeParameters(nn.Module):
    """Parameters of the model itself, a buffer, a frozen layer, and outputs in a dict."""

    def __init__(self, positions: int = 6, width: int = 8) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(positions, width, dtype=torch.float64))
        self.scale = nn.Parameter(torch.randn(width, dtype=torch.float64))
        self.register_buffer("mask", (torch.arange(positions) % 2).double())
        self.frozen = nn.Linear(width, width, dtype=torch.float64).requires_grad_(False)
        self.norm = nn.LayerNorm(width, dtype=torch.float64)
        self.head = nn.Linear(width, width, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = (self.norm(self.frozen(x)) + self.position) * self.scale
        out = self.head(hidden * self.mask[:, None])
        return {"out": out, "loss": out.square().mean()}


class Product(nn.Module):
    """One matrix product with a free weight."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def language_batch(rows: int = 8, length: int = 16, seed: int = 0) -> Example:
    """Random tokens, and other random tokens as labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    labels = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    return (ids,), {"labels": labels}


def vector_batch(rows: int = 8, width: int = 12, seed: int = 0) -> Example:
    """Random inputs and targets of an `Mlp`."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, width, dtype=torch.float64, generator=generator)
    return (x, y), {}


def sequence_batch(rows: int = 8, seed: int = 0) -> Example:
    """Random inputs of a `FreeParameters`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, 6, 8, dtype=torch.float64, generator=generator),), {}


MODELS = {
    "gpt2": (gpt2, language_batch),
    "llama": (llama, language_batch),
    "mlp": (Mlp, vector_batch),
    "free": (FreeParameters, sequence_batch),
}
"""How to build each model, and its batch."""


def loss_of(outputs: Any) -> Tensor:
    """The loss among the outputs of any model here."""
    if isinstance(outputs, Tensor):
        return outputs
    loss: Tensor = outputs["loss"]
    return loss


def ideal_cluster(devices: int, latency_s: float = 1e-12) -> Cluster:
    """Devices so slow, on links so fast, that splitting even the smallest op pays."""

    def quantity(value: float) -> Quantity:
        return Quantity(value, "made up for tests")

    profile = load_profile("cpu")
    link = replace(
        profile.node_link,
        latency_s=quantity(latency_s),
        bandwidth_bytes_per_s=quantity(1e12),
    )
    profile = replace(
        profile,
        name="ideal",
        kernel_launch_s=quantity(1e-12),
        memory_bandwidth_bytes_per_s=quantity(1e9),
        node_link=link,
        network_link=link,
    )
    return Cluster(profile, devices)
