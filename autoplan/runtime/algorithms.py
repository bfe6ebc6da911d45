"""The blockwise algorithms that emitted programs call by name, as `comm.blockwise(name, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from autoplan.runtime.blockwise import Blockwise
from autoplan.runtime.ring import RingAttention
from autoplan.runtime.summa import Summa

ALGORITHMS: Mapping[str, Callable[..., Blockwise]] = MappingProxyType(
    {
        "ring_attention": RingAttention,
        "summa": Summa,
    }
)
"""Name -> the algorithm for the options of a call."""
