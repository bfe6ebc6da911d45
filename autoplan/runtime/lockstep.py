"""Lockstep: a user's function on every simulated rank, which meets the others in collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autoplan.errors import InputError


class Lockstep:
    """Runs a function for every rank, a thread each and one at a time; they meet in collectives."""

    def __init__(self, ranks: int, together: Callable[[list[Tensor]], Sequence[Tensor]]) -> None:
        self._ranks, self._together = ranks, together
        self._turn = threading.Condition()
        self._waiting: dict[int, Tensor] = {}
        self._met: dict[int, Tensor] = {}
        self._ended = 0
        self._failure: BaseException | None = None

    def run(self, on_rank: Callable[[int], Tensor], path: str) -> list[Tensor]:
        """What `on_rank` returns on every rank; raises what the first rank to fail raised."""
        results: list[Any] = [None] * self._ranks

        def work(rank: int) -> None:
            with self._turn, torch.no_grad():
                try:
                    results[rank] = on_rank(rank)
                except BaseException as error:  # raised again below
                    self._failure = self._failure or error
                self._ended += 1
                self._refuse_to_wait(path)
                self._turn.notify_all()

        threads = [
            threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(self._ranks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return results

    def meet(self, rank: int, path: str, value: Tensor) -> Tensor:
        """Wait until every rank is here; what the collective gives to this one."""
        self._waiting[rank] = value
        self._refuse_to_wait(path)
        if len(self._waiting) == self._ranks:
            given = [self._waiting[each] for each in range(self._ranks)]
            self._met = dict(enumerate(self._together(given)))
            self._waiting.clear()
            self._turn.notify_all()
        self._turn.wait_for(lambda: rank in self._met or self._failure is not None)
        if rank not in self._met:
            raise _OthersFailedError
        return self._met.pop(rank)

    def _refuse_to_wait(self, path: str) -> None:
        """Nobody waits for a rank that is through."""
        if self._waiting and self._ended and self._failure is None:
            self._failure = InputError(
                f"a gradient handler called reduce for {path!r} on some ranks and not on others; "
                "it is a collective: call it equally often on every rank."
            )
            self._turn.notify_all()


class _OthersFailedError(Exception):
    """Another rank has failed; what it raised is raised."""
