"""Train GPT-2 on a text file, on as many devices as torchrun starts.

    torchrun --nproc-per-node 4 examples/train_gpt2.py    # 4 processes: gloo on CPU, NCCL on CUDA
    python examples/train_gpt2.py --devices 4             # 4 devices simulated in one process
    python examples/train_gpt2.py --one-device            # the plain model, for comparison

Only the two lines marked (autoplan) differ from a script for one device.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import autoplan

TEXT = Path(__file__).parent / "data" / "classics.txt"


def build_model() -> GPT2LMHeadModel:
    """GPT-2's 12 layers, narrow, reading bytes instead of tokens."""
    config = GPT2Config(
        n_layer=12,
        n_embd=128,
        n_head=4,
        n_positions=128,
        vocab_size=256,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def batches(text: bytes, batch: int, length: int) -> Iterator[torch.Tensor]:
    """Random windows of the text, [batch, length] bytes; the same ones in every process."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(len(data) - length, (batch,), generator=generator)
        yield torch.stack([data[start : start + length] for start in starts.tolist()])


def train(arguments: argparse.Namespace) -> list[float]:
    """Train and print; returns the loss of every step."""
    stream = batches(TEXT.read_bytes(), arguments.batch, 128)
    first = next(stream)
    model: torch.nn.Module = build_model()
    quiet = int(os.environ.get("RANK", "0")) != 0
    if not arguments.one_device:
        model = autoplan.parallelize(  # (autoplan)
            model, (first,), {"labels": first}, devices=arguments.devices, preset=arguments.preset
        )
        if not quiet and arguments.report:
            print(model.report(), flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    losses = []
    for step in range(arguments.steps):
        start = time.perf_counter()
        ids = first if step == 0 else next(stream)
        optimizer.zero_grad()
        if arguments.one_device:
            loss = model(ids, labels=ids).loss
            loss.backward()
        else:
            loss = model.train_step((ids,), {"labels": ids}).loss  # (autoplan)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not quiet:
            seconds = time.perf_counter() - start
            print(
                f"step {step + 1:3d}/{arguments.steps}  loss {losses[-1]:.6f}  {seconds:.2f} s",
                flush=True,
            )
    if arguments.losses and not quiet:
        arguments.losses.write_text(json.dumps(losses))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--devices", type=int, help="devices to simulate; torchrun sets it otherwise"
    )
    parser.add_argument("--preset", help="force a scheme: ddp, fsdp, megatron, megatron-sp")
    parser.add_argument("--one-device", action="store_true", help="train the plain model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--losses", type=Path, help="write the losses to this JSON file")
    parser.add_argument(
        "--no-report", dest="report", action="store_false", help="do not print the plan"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
