"""Relay: what carries values from stage to stage where stages run one after the other.

So runs a call of the module whose backward is the user's own: autograd takes the same way back.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from autoplan.runtime.links import Chain, Place
from autoplan.runtime.program import Constant, Program, TensorSpec

Stored = dict[tuple[int, str], Any]
"""Pipeline rank and path -> a parameter's value as the prologue takes it."""


class Relay(abc.ABC):
    """One run of all stages, in order; differentiable."""

    @abc.abstractmethod
    def begin(self, stored: Stored, arguments: Sequence[Any]) -> tuple[Stored, list[Any]]:
        """All parameters and arguments here, as stages read them; before any stage runs.

        The gradient of a parameter that several pipeline ranks hold, and of an argument, is the sum
        over all of them.
        """

    @property
    @abc.abstractmethod
    def anchor(self) -> Tensor | None:
        """What the backward of a step also starts from, on every rank: it reaches what `begin` did.

        Otherwise a rank whose copy of a shared parameter gets no gradient would leave others
        waiting for its share.
        """

    @abc.abstractmethod
    def receive(self, stage: int, program: Program) -> list[Any]:
        """What the stage before sends to `stage`: values, as they lie."""

    @abc.abstractmethod
    def send(self, stage: int, program: Program, values: list[Any]) -> None:
        """Pass on what `stage` sends."""

    @abc.abstractmethod
    def join(self, outputs: Sequence[Any]) -> list[Any]:
        """Flat outputs on every rank, whole; None is given for those of stages elsewhere."""


class InMemoryRelay(Relay):
    """All stages are in this process."""

    def __init__(self) -> None:
        self._sent: list[Any] = []

    def begin(self, stored: Stored, arguments: Sequence[Any]) -> tuple[Stored, list[Any]]:
        return stored, list(arguments)

    @property
    def anchor(self) -> Tensor | None:
        return None

    def receive(self, stage: int, program: Program) -> list[Any]:
        received, self._sent = self._sent, []
        return received

    def send(self, stage: int, program: Program, values: list[Any]) -> None:
        self._sent = values

    def join(self, outputs: Sequence[Any]) -> list[Any]:
        return list(outputs)


class PeerRelay(Relay):
    """Stages are on other ranks: values travel over a chain of links.

    ranks: the pipeline rank of every stage. homes: path -> the pipeline ranks that hold a parameter
    on several. outputs: of every flat output the pipeline rank that makes it and its form, or a
    plain value.
    """

    def __init__(
        self,
        place: Place,
        ranks: Sequence[int],
        homes: Mapping[str, Sequence[int]],
        outputs: Sequence[tuple[int, TensorSpec] | Constant],
    ) -> None:
        self._place, self._ranks, self._homes, self._outputs = place, ranks, homes, outputs
        self._chain = Chain(place)
        self._here: list[Tensor] = []

    def begin(self, stored: Stored, arguments: Sequence[Any]) -> tuple[Stored, list[Any]]:
        # One order on all ranks, so that nobody waits for one that waits for it.
        shared = sorted(key for key in stored if key[1] in self._homes)
        holders = [self._homes[path] for _, path in shared]
        tied = self._chain.tie([stored[key] for key in shared], holders)
        stored = {**stored, **dict(zip(shared, tied, strict=True))}
        wanted = [n for n, a in enumerate(arguments) if isinstance(a, Tensor) and a.requires_grad]
        entered = list(arguments)
        found = self._chain.enter([arguments[n] for n in wanted])
        for number, value in zip(wanted, found, strict=True):
            entered[number] = value
        return stored, entered

    @property
    def anchor(self) -> Tensor | None:
        return self._chain.token

    def receive(self, stage: int, program: Program) -> list[Any]:
        if stage == 0:
            return []
        if self._ranks[stage - 1] == self._place.rank:
            received, self._here = self._here, []
            return received
        return self._chain.receive(program, self._ranks[stage - 1])

    def send(self, stage: int, program: Program, values: list[Any]) -> None:
        if stage + 1 == len(self._ranks):
            return
        if self._ranks[stage + 1] == self._place.rank:
            self._here = values
        else:
            self._chain.send(values, program, self._ranks[stage + 1])

    def join(self, outputs: Sequence[Any]) -> list[Any]:
        forms = {n: each for n, each in enumerate(self._outputs) if isinstance(each, tuple)}
        joined = self._chain.join(
            [outputs[n] for n in forms],
            [rank for rank, _ in forms.values()],
            [spec for _, spec in forms.values()],
        )
        found = dict(zip(forms, joined, strict=True))
        return [
            found[n] if isinstance(each, tuple) else each.value
            for n, each in enumerate(self._outputs)
        ]
