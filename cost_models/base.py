"""The question list of a cost model, and the values that the questions are asked in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from autoplan.errors import ConfigError

WorkKind = Literal["matmul", "attention", "memory", "free"]

ELEMENT_BYTES: dict[str, int] = {
    "complex128": 16,
    "complex64": 8,
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

OPTIMIZER_STATES: dict[str, int] = {
    "adamw": 2,
    "adam": 2,
    "sgd_momentum": 1,
    "momentum": 1,
    "sgd": 0,
    "none": 0,
}


@dataclass(frozen=True)
class Work:
    """The work of one local op on one device, in one direction (forward or backward).

    kind: "matmul" (dense contraction or convolution), "attention" (fused), "memory" (elementwise,
        reduction, copy, lookup) or "free" (a view: no kernel at all).
    flops: floating point operations, a multiply-add counted as 2.
    bytes_moved: bytes read from and written to device memory.
    dtype: of the arithmetic, as torch prints it without "torch.", e.g. "bfloat16".
    """

    kind: WorkKind
    flops: float
    bytes_moved: float
    dtype: str


@dataclass(frozen=True)
class AxisLink:
    """What the collectives of one mesh axis run on: figures per rank, one direction, achievable.

    name: the mesh axis. size: ranks on it. latency_s: per step of a collective (alpha).
    bandwidth_bytes_per_s: of one rank to the others (beta).
    ring_bandwidth_bytes_per_s: of a ring over the axis, where it differs: a ring over nodes enters
        each node through the network adapters of all its members there. None: as one rank's.
    next_bandwidth_bytes_per_s: of one rank to the next alone, where that is less: no switch joins
        them, and other links lead to other ranks. None: as to all.
    """

    name: str
    size: int
    latency_s: float
    bandwidth_bytes_per_s: float
    ring_bandwidth_bytes_per_s: float | None = None
    next_bandwidth_bytes_per_s: float | None = None


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes that one parameter keeps alive on one device from step to step."""

    parameter: float
    gradient: float
    optimizer_state: float

    @property
    def total(self) -> float:
        return self.parameter + self.gradient + self.optimizer_state


class CostModel(Protocol):
    """Prices a plan. A new cost model is one class with these three methods."""

    def op_time_s(self, work: Work) -> float:
        """Seconds that one device needs for `work`; 0 for a view."""
        ...

    def collective_time_s(self, kind: str, size_bytes: float, axis: str) -> float:
        """Seconds of one collective over the mesh axis called `axis`; 0 on an axis of size 1.

        kind: all_gather, reduce_scatter, all_reduce, all_to_all, broadcast, reduce or send.
        size_bytes: of the local tensor whole over this axis: what all_gather returns, what
            reduce_scatter takes, what all_reduce and reduce sum, all shards together for
            all_to_all, and the message of a broadcast or a send.
        """
        ...

    def resident_bytes(
        self, numel: float, dtype: str, optimizer: str, trained: bool
    ) -> ParameterBytes:
        """Bytes that a parameter of `numel` local elements keeps alive.

        `trained` is False in inference and for a frozen parameter.
        """
        ...


def parameter_bytes(numel: float, dtype: str, optimizer: str, trained: bool) -> ParameterBytes:
    """Bytes of a parameter, its gradient and its state as torch.optim holds them.

    numel: elements of the local shard. The gradient and every state tensor have the parameter's
    dtype (torch.optim makes them with zeros_like). The scalar step counters of Adam, 4 bytes a
    parameter tensor, are left out. Without training only the parameter stays.

    Raises ConfigError for an optimizer or a dtype that is not known.
    """
    if optimizer not in OPTIMIZER_STATES:
        raise unknown_name("optimizer", optimizer, OPTIMIZER_STATES)
    size = float(numel * element_bytes(dtype))
    if not trained:
        return ParameterBytes(size, 0.0, 0.0)
    return ParameterBytes(size, size, OPTIMIZER_STATES[optimizer] * size)


def element_bytes(dtype: str) -> int:
    """Bytes of one element of `dtype` ("float32", ...); raises ConfigError for an unknown one."""
    if dtype not in ELEMENT_BYTES:
        raise unknown_name("dtype", dtype, ELEMENT_BYTES)
    return ELEMENT_BYTES[dtype]


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `known`: it lists them, with the nearest first."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"no {what} is called {name!r} ({hint}known: {', '.join(names)}).")
