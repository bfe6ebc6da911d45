"""What the ranks of `test_ring_attention` run, in one process or on real ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use
from torch.utils._python_dispatch import TorchDispatchMode  # documented by its use in torch

import autoplan
from tests.end_to_end.training import Case, Outcome, error, gradients, train
from tests.models import Example

BATCH, LENGTH, WIDTH, HEADS, HEAD_WIDTH = 2, 64, 4, 4, 4


class CausalAttention(nn.Module):
    """One block: projections, causal attention, a projection, and the mean square of the result.

    `groups`: query heads per key head. The input is narrower than keys and values, so that a whole
    one is no larger than their shards.
    """

    def __init__(self, groups: int = 1, causal: bool = True) -> None:
        super().__init__()
        heads, key_heads = HEADS * HEAD_WIDTH, HEADS // groups * HEAD_WIDTH
        self.causal, self.groups = causal, groups
        self.query = nn.Linear(WIDTH, heads)
        self.key = nn.Linear(WIDTH, key_heads, bias=False)  # whose gradient is zero
        self.value = nn.Linear(WIDTH, key_heads)
        self.out = nn.Linear(heads, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each(x).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, enable_gqa=self.groups > 1
        )
        return self.out(mixed.transpose(1, 2).flatten(2)).square().mean()


WHOLE_KEYS = BATCH * LENGTH * HEADS * HEAD_WIDTH
"""Numbers of the whole K of a block, or of its whole V."""


def block(**options: Any) -> tuple[CausalAttention, Example]:
    torch.manual_seed(0)
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    return CausalAttention(**options).double(), ((x,), {})


KERNELS = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": "forward",
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": "backward",
}


class Seen(TorchDispatchMode):
    """The largest tensor that an op returned, or read, and the query-key pairs of attention.

    In numbers of float64: what travels is a view as bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.pairs: dict[str, list[int]] = {"forward": [], "backward": []}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **({} if kwargs is None else kwargs))
        for tensor in pytree.tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                numbers = tensor.numel() * tensor.element_size() // 8
                storage = tensor.untyped_storage().nbytes() // 8
                self.largest = max(self.largest, numbers, storage)
        kind = KERNELS.get(str(func))
        if kind:
            first, flag = (0, 4) if kind == "forward" else (1, 7)
            queries, keys = args[first].shape[-2], args[first + 1].shape[-2]
            causal = len(args) > flag and args[flag]
            self.pairs[kind].append(queries * (queries + 1) // 2 if causal else queries * keys)
        return result


@dataclass(frozen=True)
class Block:
    """One block on this process' ranks: what it saw, and how far it is from one device."""

    largest: int
    pairs: dict[str, list[int]]
    loss_error: float
    gradient_errors: dict[str, float]
    choices: set[str] = field(default_factory=set)


def run_block(devices: int, **options: Any) -> Block:
    """Forward and backward of a block whose sequence is split by preset 'ring'."""
    model, (args, kwargs) = block(**options)
    truth = model(*args, **kwargs)
    truth.backward()
    expected = gradients(model)
    module = autoplan.parallelize(
        block(**options)[0], args, kwargs, devices=devices, preset="ring", cluster="h100"
    )
    with Seen() as seen:
        loss = module(*args, **kwargs)
        loss.backward()
    found = gradients(module)
    attention = [row for row in module.plan.operations if "scaled_dot_product" in row.op]
    return Block(
        seen.largest,
        seen.pairs,
        error(loss.detach(), truth.detach()),
        {path: error(found[path], expected[path]) for path in expected},
        {row.choice for row in attention},
    )


def dense_block(**options: Any) -> Seen:
    """The same on one device, without a plan."""
    model, (args, kwargs) = block(**options)
    with Seen() as seen:
        model(*args, **kwargs).backward()
    return seen


BLOCKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "plain": {"causal": False},
    "groups": {"groups": 2},
}


def everything(rank: int, ranks: int, cases: list[Case]) -> dict[str, Any]:
    """All blocks and all cases; an error of a case is kept as its text."""
    results: dict[str, Any] = {name: run_block(ranks, **given) for name, given in BLOCKS.items()}
    for case in cases:
        results[str(case)] = trained(rank, ranks, case)
    return results


def trained(rank: int, ranks: int, case: Case) -> Outcome | str:
    try:
        return train(rank, ranks, case)
    except autoplan.AutoplanError as failure:  # alike on all ranks
        return f"{type(failure).__name__}: {failure}"
