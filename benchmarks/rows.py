"""The rows of the planner's table: models by their published sizes, meshes, and what each may take.

Nothing here imports torch, so that the process that prints the table stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOKENS = 4096
"""One sequence a step, bf16, training."""
EMIT_LIMIT_S = 10.0
MEMORY_LIMIT_BYTES = 2e9
"""Of the measuring process: interpreter, torch and transformers are about 0.45 GB of it."""
GROWTH_LIMIT = 8.0
"""Planning 96 layers over planning 12: eight times the layers must take less than that."""


@dataclass(frozen=True)
class Shape:
    """A model as transformers builds it: its classes `<family>Config`, `<family>ForCausalLM`."""

    title: str
    family: str
    config: Mapping[str, int] = field(default_factory=dict)

    def with_layers(self, layers: int) -> Shape:
        """The same widths with `layers` layers."""
        return Shape(
            f"{self.title}, {layers} layers",
            self.family,
            {**self.config, "num_hidden_layers": layers},
        )


@dataclass(frozen=True)
class Row:
    """One line of the table; `limit_s` is for the whole of `plan` after capture."""

    name: str
    shape: Shape
    mesh: tuple[int, ...]
    limit_s: float
    gap: float = 0.0


# Dubey et al. 2024, "The Llama 3 herd of models", table 3.
LLAMA_8B = Shape(
    "Llama-3-8B",
    "Llama",
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
)
LLAMA_70B = Shape(
    "Llama-3-70B",
    "Llama",
    {
        **LLAMA_8B.config,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
    },
)
# DeepSeek-AI 2024, "DeepSeek-V3 technical report", section 4.2; transformers' defaults are its
# sizes, named here where the table's claim rests on them. Without the multi-token prediction head.
DEEPSEEK_V3 = Shape(
    "DeepSeek-V3",
    "DeepseekV3",
    {
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "vocab_size": 129280,
    },
)


def _named(mesh: tuple[int, ...]) -> str:
    return "x".join(map(str, mesh))


def _rows() -> tuple[Row, ...]:
    limits = {(8,): 2.0, (2, 4): 6.0, (8, 8): 6.0, (32, 8): 6.0, (2, 2, 4): 90.0}
    by_mesh = [
        Row(
            f"8b-{_named(mesh)}",
            LLAMA_8B.with_layers(32),
            mesh,
            limit_s,
            gap=0.01 if len(mesh) > 2 else 0.0,
        )
        for mesh, limit_s in limits.items()
    ]
    by_layers = [
        Row(
            f"8b-{layers}-layers",
            LLAMA_8B.with_layers(layers),
            (8, 8),
            12.0 if layers == 96 else 6.0,
        )
        for layers in (12, 24, 48, 96)
    ]
    large = [
        Row("70b-8x8", LLAMA_70B.with_layers(80), (8, 8), 10.0),
        Row("deepseek-v3-16x8", DEEPSEEK_V3.with_layers(61), (16, 8), 60.0),
        Row("deepseek-v3-32x8", DEEPSEEK_V3.with_layers(61), (32, 8), 60.0),
    ]
    return (*by_mesh, *by_layers, *large)


ROWS = {row.name: row for row in _rows()}
