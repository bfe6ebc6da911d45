"""Policies: when a parameter that is stored split is gathered, and its gradient reduced."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from autoplan.strategies.rule import is_streaming

Policy = Literal["step", "reduce", "microbatch"]
"""step: gathered once for all microbatches; the whole gradient adds up, and is reduced once.
reduce: gathered once; every microbatch's gradient is reduced at once, its shard adds up (ZeRO-2).
microbatch: gathered by each reader, again for its backward, and never kept; reduced as above
    (ZeRO-3, Rajbhandari et al. 2020; "reshard after forward", Zhao et al. 2023).
"""

POLICY_TEXTS: Mapping[Policy, str] = MappingProxyType(
    {
        "step": "",
        "reduce": ", reduced per microbatch",
        "microbatch": ", gathered per microbatch",
    }
)
"""How a parameter's choice says it, behind its layouts."""


def without_policy(choice: str) -> tuple[str, str]:
    """A parameter's choice as text: its layouts, and what says its policy."""
    for text in POLICY_TEXTS.values():
        if text and choice.rstrip().endswith(text):
            return choice.rstrip().removesuffix(text), text
    return choice, ""


def is_lean(choice: str) -> bool:
    """Whether a choice as text holds less of a tensor than gathering it once does."""
    streams = any(is_streaming(label.strip()) for label in choice.split("|"))
    return streams or without_policy(choice)[1] != ""
