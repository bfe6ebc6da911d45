"""What every rank needs, imported once by each server of processes that ranks are forked from.

Importing this module takes seconds, mostly torch, what its first export imports, and transformers;
it leaves no second thread, which a fork would lose, and no state but caches of what is imported.
"""

from __future__ import annotations

import gc
from contextlib import suppress

import torch
import torch.distributed.checkpoint.state_dict
import transformers
from torch import nn

import autoplan

for _family in ("Bert", "GPT2", "Llama", "Mixtral", "ResNet", "T5"):  # imported when first named
    getattr(transformers, f"{_family}Model")
torch.set_num_threads(1)
with torch.random.fork_rng(devices=()), suppress(Exception):  # which tests tell better
    autoplan.plan(nn.Linear(2, 2), (torch.zeros(2, 2),), devices=2)
gc.collect()
gc.freeze()  # pages that no collection writes to are shared by all ranks
