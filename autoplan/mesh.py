"""The device mesh: named axes over ranks, row-major, as torch's DeviceMesh numbers them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from autoplan.errors import ConfigError


@dataclass(frozen=True)
class Mesh:
    """Named axes and their sizes; rank = row-major index of its coordinates.

    Axes of size 1 are dropped by `Mesh.of`, so that a layout has one entry per real axis.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.sizes) or len(set(self.axes)) != len(self.axes):
            raise ConfigError(
                f"mesh axes {self.axes} and sizes {self.sizes} do not match one to one."
            )
        if any(size < 1 for size in self.sizes):
            raise ConfigError(
                f"mesh sizes must be positive, got {dict(zip(self.axes, self.sizes, strict=True))}."
            )

    @staticmethod
    def of(**sizes: int) -> Mesh:
        """A mesh from sizes in order, `Mesh.of(data=2, tensor=4)`; axes of size 1 collapse."""
        kept = {name: size for name, size in sizes.items() if size != 1}
        return Mesh(tuple(kept), tuple(kept.values()))

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def ndim(self) -> int:
        return len(self.axes)

    def index(self, axis: str) -> int:
        """Position of the axis called `axis`; raises ConfigError with the known names."""
        if axis not in self.axes:
            raise ConfigError(f"no mesh axis is called {axis!r}; the axes are {list(self.axes)}.")
        return self.axes.index(axis)

    def size(self, axis: str) -> int:
        return self.sizes[self.index(axis)]

    def stride(self, axis: str) -> int:
        """Distance in ranks between neighbours along `axis`."""
        return math.prod(self.sizes[self.index(axis) + 1 :])

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """Coordinates of `rank`, one per axis; raises ConfigError for a rank outside the mesh."""
        if not 0 <= rank < self.num_devices:
            raise ConfigError(
                f"rank {rank} is outside the mesh {self}; use 0 to {self.num_devices - 1}."
            )
        result = []
        for size in reversed(self.sizes):
            rank, coordinate = divmod(rank, size)
            result.append(coordinate)
        return tuple(reversed(result))

    def rank(self, coordinates: tuple[int, ...]) -> int:
        rank = 0
        for coordinate, size in zip(coordinates, self.sizes, strict=True):
            rank = rank * size + coordinate
        return rank

    def groups(self, axis: str) -> list[list[int]]:
        """The rank groups that communicate along `axis`, each in coordinate order."""
        at = self.index(axis)
        others = [range(size) if i != at else range(1) for i, size in enumerate(self.sizes)]
        result = []
        for base in product(*others):
            members = (base[:at] + (k,) + base[at + 1 :] for k in range(self.sizes[at]))
            result.append([self.rank(member) for member in members])
        return result

    def __str__(self) -> str:
        return (
            " x ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.sizes, strict=True))
            or "1 device"
        )
