"""How tests share the machine: one thread a process, whole files a worker, the longest first."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

# Before torch is imported, here and in what tests start: tensors are too small for more.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes first, then those of many tests: short ones even out the end."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (not _starts_processes(item), -counts[item.path], item.path))


def _starts_processes(item: pytest.Item) -> bool:
    held = vars(getattr(item, "module", None) or object)
    return not held.keys().isdisjoint({"run_ranks", "start_process", "subprocess"})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files in this order, with `-n` alone: what a file makes once is made on one worker."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
