"""What every rank of the tests of plan files does."""

from __future__ import annotations

from typing import Any

import autoplan
from tests.models import gpt2, language_batch


def deeper_from_file(rank: int, path: str) -> dict[str, Any]:
    """A plan of two blocks on a model of three."""
    module = autoplan.parallelize(gpt2(n_layer=3), *language_batch(), plan=path)
    return {
        "ok": module.verify(*language_batch()).ok,
        "choices": str(module.plan.choices),
        "notes": "\n".join(module.plan.notes),
    }
