"""What `autoplan demo` trains: a small transformer that learns to write this file, byte by byte.

Run by `autoplan run` on several processes it trains by the plan; `losses` without a plan trains the
plain model. A script to start from: only the lines marked (autoplan) are about many devices.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan

WIDTH, LAYERS, HEADS, TOKENS, BATCH = 64, 3, 4, 64, 8
BYTES = 256


class Block(nn.Module):
    """Causal attention and a multilayer perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        query, key, value = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Writer(nn.Module):
    """Bytes in, the mean cross-entropy of the next bytes out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(BYTES, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, BYTES, bias=False)

    def forward(self, text: Tensor, following: Tensor) -> Tensor:
        x = self.bytes(text) + self.places(torch.arange(TOKENS, device=text.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), following.flatten())


def build() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model and its first batch: `autoplan plan demo_training.py:build --devices 4`."""
    torch.manual_seed(0)
    return Writer(), next(batches())


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows of this file, [BATCH, TOKENS] bytes, and the bytes that follow each."""
    data = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(len(data) - TOKENS - 1, (BATCH,), generator=generator).tolist()
        windows = torch.stack([data[start : start + TOKENS + 1] for start in starts])
        yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def losses(plan: str | None, steps: int, each: Callable[[int, float], None]) -> list[float]:
    """Train for `steps` steps; the loss of every one, also told to `each`."""
    model, first = build()
    parallel = None
    if plan is not None:
        parallel = autoplan.parallelize(model, first, plan=plan)  # (autoplan)
    trained = model if parallel is None else parallel
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    stream, found = batches(), []
    for step in range(steps):
        batch = next(stream)
        if parallel is None:
            loss = model(*batch)
            loss.backward()
        else:
            loss = parallel.train_step(batch).loss  # (autoplan)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
        each(step, found[-1])
    return found


def main() -> None:
    steps, to = int(sys.argv[1]), Path(sys.argv[2])
    first = os.environ["RANK"] == "0"

    def tell(step: int, loss: float) -> None:
        if first:
            print(f"  step {step + 1:3d}/{steps}  loss {loss:.6f}", flush=True)

    found = losses(os.environ["AUTOPLAN_PLAN"], steps, tell)
    if first:
        to.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
