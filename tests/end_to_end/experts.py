"""Small mixtures of experts and their training beside one device, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import autoplan

MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 101,
    },
    "deepseek": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "vocab_size": 101,
    },
}
"""Mixtral's and DeepSeek-V3's structure: the latter has a dense layer, and a shared expert."""


def mixture(name: str, **changes: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The same in every process: a model in train mode, and a batch of 8."""
    import transformers

    torch.manual_seed(0)
    family = {"mixtral": "Mixtral", "deepseek": "DeepseekV3"}[name]
    config = getattr(transformers, f"{family}Config")(
        **MIXTURES[name] | {"use_cache": False} | changes
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().train()
    ids = torch.randint(0, 101, (8, 6))
    return model, (ids,), {"labels": ids}


def parallel(name: str, **changes: Any) -> autoplan.ParallelModule:
    """The mixture on 4 ranks, its experts split."""
    model, args, kwargs = mixture(name, **changes)
    return autoplan.parallelize(model, args, kwargs, devices=4, cluster="cpu", preset="expert")


def train(name: str, **changes: Any) -> autoplan.Check:
    """Outputs, every gradient, and the weights after 3 steps of AdamW, beside one device."""
    _, args, kwargs = mixture(name, **changes)
    return parallel(name, **changes).verify(args, kwargs, steps=3)


def train_on_four(rank: int) -> dict[str, tuple[bool, float, str]]:
    """Every mixture on one rank of four."""
    torch.set_num_threads(1)
    checks = {name: train(name) for name in MIXTURES}
    return {name: (each.ok, each.tolerance, str(each)) for name, each in checks.items()}
