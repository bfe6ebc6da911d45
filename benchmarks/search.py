"""How long the search over whole shapes takes, from meta weights: nothing but devices is given.

python -m benchmarks.search [--rows gpt2-8 ...] [--json FILE]

Every row runs in a process of its own. Its limit is for all of `plan` after the first capture of
the model: further captures, estimates, solved shapes, proofs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import LLAMA_8B, LLAMA_70B, Shape

GPT2 = Shape("GPT-2 small", "GPT2", {"n_positions": 1024})
# Dubey et al. 2024, "The Llama 3 herd of models", tables 3 and 4: 8,192 tokens a sequence.
LLAMA_405B = Shape(
    "Llama-3-405B",
    "Llama",
    {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
)


@dataclass(frozen=True)
class SearchRow:
    """`batch` sequences of `tokens` a step on `devices` of a cluster, within `limit_s` seconds."""

    name: str
    shape: Shape
    devices: int
    batch: int
    tokens: int
    limit_s: float
    options: Mapping[str, Any] = field(default_factory=dict)


ROWS = {
    row.name: row
    for row in (
        SearchRow("gpt2-8", GPT2, 8, 16, 1024, 30.0),
        SearchRow("8b-8", LLAMA_8B.with_layers(32), 8, 16, 4096, 60.0),
        SearchRow("70b-64", LLAMA_70B.with_layers(80), 64, 128, 4096, 180.0),
        SearchRow("405b-16384", LLAMA_405B, 16384, 2048, 8192, 600.0),
    )
}


def build(shape: Shape) -> Any:
    """The model on the meta device, in bf16."""
    import torch
    import transformers

    config = getattr(transformers, f"{shape.family}Config")(**shape.config)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def measure(row: SearchRow) -> dict[str, Any]:
    """One search: seconds, the shape that it found, and what is proven."""
    import torch

    import autoplan
    from benchmarks.measure import peak_bytes

    model = build(row.shape)
    ids = torch.empty(row.batch, row.tokens, dtype=torch.long, device="meta")
    start, start_cpu = time.perf_counter(), time.process_time()
    plan = autoplan.plan(
        model,
        (ids,),
        {"labels": ids},
        devices=row.devices,
        cluster="h100",
        microbatches="auto",
        time_limit_s=_PART * row.limit_s,
        **row.options,
    )
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    solved = [each for each in plan.shapes if each.status == "solved"]
    return {
        "row": row.name,
        "seconds": wall,
        "cpu_seconds": cpu,
        "limit_s": row.limit_s,
        "shapes": plan.num_shapes,
        "best": solved[0].shape if solved else str(plan.mesh),
        "scheme": plan.scheme,
        "step_s": plan.step_time_s,
        "bound_s": plan.certificate.bound,
        "plan_peak_bytes": plan.peak_memory_bytes,
        "process_peak_bytes": peak_bytes(),
    }


_PART = 0.6
"""Of the limit that the search is given: capturing, comparisons and the report come beside."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(ROWS[arguments.measure])))
        return
    found, broken = [], False
    for name in arguments.rows:
        row = ROWS[name]
        command = [sys.executable, "-m", "benchmarks.search", "--measure", name]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * row.limit_s + 300
        )
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}")
            broken = True
            continue
        figures = json.loads(done.stdout.splitlines()[-1])
        found.append(figures)
        # The machine may be busy with something else; planning waits for nothing.
        late = min(figures["seconds"], figures["cpu_seconds"]) > row.limit_s
        broken |= late
        print(
            f"{row.shape.title} on {row.devices}: {figures['seconds']:.1f} s "
            f"({figures['cpu_seconds']:.1f} s of CPU, limit {row.limit_s:g} s"
            f"{', BROKEN' if late else ''}), {figures['shapes']} shapes; {figures['best']}: "
            f"{figures['step_s'] * 1e3:.4g} ms, proven {figures['bound_s'] * 1e3:.4g} ms; "
            f"{figures['scheme']}",
            flush=True,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
