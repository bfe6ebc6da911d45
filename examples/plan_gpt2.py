"""Plan GPT-2 as a config file says, with `key=value` overrides after it, and print the report.

python examples/plan_gpt2.py examples/plan.toml devices=16 parallel.tensor.size=4 memory=40GB
"""

from __future__ import annotations

import sys

import torch
from train_gpt2 import build_model

import autoplan


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    ids = torch.zeros((64, 128), dtype=torch.int64)
    try:
        options = autoplan.read_config(sys.argv[1], sys.argv[2:])
        plan = autoplan.plan(build_model(), (ids,), {"labels": ids}, **options)
    except autoplan.AutoplanError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(plan.report())


if __name__ == "__main__":
    main()
