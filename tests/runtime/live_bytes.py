"""Live bytes: a dispatch mode that counts the memory of tensors, and says what a peak is made of.

Every storage that an op returns is counted once, from that op until nothing refers to it: in the
forward, in autograd's backward, in the optimizer, and what collectives return. Buffers that a
kernel makes and frees inside one op are not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use
from torch.utils._python_dispatch import TorchDispatchMode  # documented by its use in torch

BEFORE = "before"
"""The op and the phase of what was alive when the meter started."""


@dataclass(frozen=True)
class Held:
    """One storage: what the op that made it returned first in it.

    phase: the meter's mark when it was made; `backward` whether autograd ran the op.
    """

    num_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    op: str
    phase: str
    backward: bool

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        dtype = str(self.dtype).removeprefix("torch.")
        where = f"{self.phase}, backward" if self.backward else self.phase
        return f"{shape} {dtype} of {self.op} ({where})"


@dataclass(frozen=True)
class Peak:
    """The moment of most live bytes: the first op that reaches it, and what was alive then."""

    num_bytes: int
    op: str
    phase: str
    backward: bool
    held: tuple[Held, ...]

    def table(self, rows: int = 30) -> str:
        """What was alive, alike storages on one line, the most bytes first."""
        counts = Counter(self.held)
        lines = sorted(counts, key=lambda each: -each.num_bytes * counts[each])
        moment = f"{self.phase}, backward" if self.backward else self.phase
        title = f"{self.num_bytes:,} bytes at {self.op} ({moment})"
        body = (f"{e.num_bytes * counts[e]:14,}  {counts[e]:4} x {e}" for e in lines[:rows])
        return "\n".join((title, *body))


class LiveBytes(TorchDispatchMode):
    """Counts live bytes while it is active.

    held: any tree of tensors that are alive already and that count: parameters, optimizer state,
        arguments. What an op reads without having seen it made counts as alive from the start too.
    """

    def __init__(self, *held: Any) -> None:
        super().__init__()
        self.phase = BEFORE
        self._known: dict[int, tuple[Any, Held]] = {}
        self._before: list[Held] = []
        self._log: list[tuple[Held, int]] = []
        for tensor in pytree.tree_leaves(held):
            if isinstance(tensor, Tensor):
                self._see(_local(tensor), BEFORE)

    def mark(self, phase: str) -> None:
        """Name what runs from here on."""
        self.phase = phase

    @property
    def start_bytes(self) -> int:
        """Bytes that were alive before the first op."""
        return sum(each.num_bytes for each in self._before)

    @property
    def live_bytes(self) -> int:
        """Bytes alive now."""
        return self.start_bytes + sum(sign * each.num_bytes for each, sign in self._log)

    def peak(self, phase: str | None = None) -> Peak:
        """The moment of most live bytes, of one phase or of all."""
        alive = most = self.start_bytes
        at = 0 if phase in (None, BEFORE) else None
        for number, (each, sign) in enumerate(self._log, start=1):
            alive += sign * each.num_bytes
            if phase not in (None, each.phase if sign > 0 else None):
                continue
            if at is None or alive > most:
                most, at = alive, number
        counts = Counter(self._before)
        for each, sign in self._log[: at or 0]:
            counts[each] += sign
        last = self._log[at - 1][0] if at else None
        return Peak(
            most,
            last.op if last else BEFORE,
            last.phase if last else BEFORE,
            last.backward if last else False,
            tuple(counts.elements()),
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # DTensor runs its local ops, which come back here
        for tensor in pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, BEFORE)
        result = func(*args, **({} if kwargs is None else kwargs))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, str(func))
        return result

    def _see(self, tensor: Tensor, op: str) -> None:
        if tensor.is_meta or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        key = storage._cdata
        if key in self._known:
            if self._known[key][1].num_bytes == size:
                return
            self._forget(key)
        backward = torch._C._current_graph_task_id() != -1
        phase = BEFORE if op == BEFORE else self.phase
        held = Held(size, tuple(tensor.shape), tensor.dtype, op, phase, backward and op != BEFORE)
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key)), held
        if op == BEFORE:
            self._before.append(held)
        else:
            self._log.append((held, 1))

    def _forget(self, key: int) -> None:
        self._log.append((self._known.pop(key)[1], -1))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
