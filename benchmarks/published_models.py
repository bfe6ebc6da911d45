"""The models of the published runs, from transformers, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.published_runs import KEY_VALUE_HEADS, Run


class Mixed(nn.Module):
    """A model whose parameters are float32, and whose computation is in `dtype`.

    As Megatron-LM trains: every parameter is cast once a step, the optimizer holds float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, **kwargs: Tensor) -> Tensor:
        cast = {path: value.to(self._dtype) for path, value in self.model.named_parameters()}
        loss: Tensor = torch.func.functional_call(self.model, cast, (), kwargs).loss
        return loss


def build(run: Run) -> nn.Module:
    """The run's model, without weights."""
    with torch.device("meta"):
        model = _BUILDERS[run.model](run)
    dtype = getattr(torch, run.source.dtype)
    return Mixed(model, dtype).train() if run.source.precision == "mixed" else model.to(dtype)


def batch_of(run: Run) -> dict[str, Tensor]:
    """The arguments of one step, without values."""
    ids = torch.empty(run.batch, run.sequence, dtype=torch.long, device="meta")
    if run.model != "BERT":
        return {"input_ids": ids, "labels": ids.clone()}
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    one = torch.empty(run.batch, dtype=torch.long, device="meta")
    return {**{name: ids.clone() for name in names}, "next_sentence_label": one}


def replicated(run: Run) -> dict[str, str]:
    """Hints on what runs alike on every tensor-parallel rank: norms, dropout and residual sums.

    So Megatron-LM's tensor parallelism has it (Shoeybi et al. 2019, section 3), before Korthikanti
    et al. 2022 split it along the sequence.
    """
    if run.tensor == 1 or run.sequence_parallel:
        return {}
    blocks = _BLOCKS[run.model]
    digits = range(1, len(str(run.layers - 1)) + 1)
    sums = [blocks.replace("#", "[0-9]" * count) for count in digits]
    return dict.fromkeys((*_REPLICATED[run.model], *sums), "op: tensor=B")


def _bert(run: Run) -> nn.Module:
    """Masked words and the next sentence, with dropout as it is by default."""
    config = transformers.BertConfig(
        hidden_size=run.hidden,
        num_attention_heads=run.heads,
        num_hidden_layers=run.layers,
        intermediate_size=run.width,
        vocab_size=run.vocabulary,
        max_position_embeddings=run.sequence,
        **_attention(run),
    )
    return transformers.BertForPreTraining(config)


def _gpt(run: Run) -> nn.Module:
    """Tied embeddings, a GELU that is one kernel, dropout as it is by default."""
    config = transformers.GPT2Config(
        n_embd=run.hidden,
        n_head=run.heads,
        n_layer=run.layers,
        n_positions=run.sequence,
        vocab_size=run.vocabulary,
        activation_function="gelu",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **_attention(run),
    )
    return transformers.GPT2LMHeadModel(config)


def _llama(run: Run) -> nn.Module:
    """Llama 3: 8 groups of keys and values."""
    config = transformers.LlamaConfig(
        hidden_size=run.hidden,
        intermediate_size=run.width,
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        num_key_value_heads=KEY_VALUE_HEADS,
        vocab_size=run.vocabulary,
        max_position_embeddings=run.sequence,
        use_cache=False,
        **_attention(run),
    )
    return transformers.LlamaForCausalLM(config)


def _attention(run: Run) -> dict[str, Any]:
    """The form of attention that the source ran."""
    return {"attn_implementation": run.source.attention}


_BUILDERS: dict[str, Any] = {"BERT": _bert, "GPT": _gpt, "Llama": _llama}

_REPLICATED: dict[str, tuple[str, ...]] = {
    "BERT": ("*.LayerNorm", "*.output.dropout"),
    "GPT": ("*.ln_?", "*.resid_dropout", "*.mlp.dropout"),
    "Llama": ("*layernorm",),
}
_BLOCKS = {"BERT": "*.layer.#*.output", "GPT": "*.h.#", "Llama": "*.layers.#"}
"""The modules whose own ops are the residual sums; # is the number of a block."""
