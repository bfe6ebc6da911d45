"""The amounts of a limit while `reduce` makes the problem smaller."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autoplan.solver.candidates import split_sum
from autoplan.solver.problem import FloatArray, Limit, read_only


class Amounts:
    """The sum of one limit: a vector per variable, a matrix per pair in both directions.

    `reduce` deletes candidates and variables; the sum of those that are left stays what it was.
    """

    def __init__(self, limit: Limit) -> None:
        self.given = limit
        self.constant = limit.constant
        self.vectors = dict(limit.vectors)
        self.matrices: dict[int, dict[int, FloatArray]] = {}
        for (u, v), matrix in limit.matrices.items():
            split = split_sum(matrix)
            if split is None:
                self.matrices.setdefault(u, {})[v] = matrix
                self.matrices.setdefault(v, {})[u] = matrix.T
            else:
                self._add(u, split[0])
                self._add(v, split[1])

    def variables(self) -> list[int]:
        return sorted(self.vectors.keys() | self.matrices.keys())

    def counts(self, u: int) -> bool:
        """Whether the choice of u can matter to the sum."""
        vector = self.vectors.get(u)
        return u in self.matrices or (vector is not None and bool((vector != vector[0]).any()))

    def around(self, u: int, size: int) -> tuple[FloatArray, list[FloatArray]]:
        """What the candidates of u add: by themselves, and with each neighbour."""
        vector = self.vectors.get(u)
        return np.zeros(size) if vector is None else vector, list(self.matrices.get(u, {}).values())

    def range(self) -> tuple[float, float]:
        """The least and the largest sum that the parts allow, each by itself."""
        pairs = [m for u, others in self.matrices.items() for v, m in others.items() if u < v]
        parts = [*self.vectors.values(), *pairs]
        least = self.constant + sum(float(part.min()) for part in parts)
        return least, self.constant + sum(float(part.max()) for part in parts)

    def excess(self, u: int, size: int) -> FloatArray:
        """float[ku]: what each candidate adds at least, above the least that u adds."""
        vector, pairs = self.around(u, size)
        total: FloatArray = vector - vector.min()
        for matrix in pairs:
            total = total + (matrix.min(axis=1) - matrix.min())
        return total

    def keep(self, u: int, mask: npt.NDArray[np.bool_]) -> list[int]:
        """Deletes candidates of u outside `mask`; the neighbours that lost their pair with u."""
        if u in self.vectors:
            self.vectors[u] = self.vectors[u][mask]
        freed = []
        for v, matrix in tuple(self.matrices.get(u, {}).items()):
            left = matrix[mask]
            self.matrices[u][v], self.matrices[v][u] = left, left.T
            if left.shape[0] == 1:  # u is decided: what is left is a matter of v alone
                self._part(u, v)
                self._add(v, left[0])
                freed.append(v)
        return freed

    def _part(self, u: int, v: int) -> None:
        for one, other in ((u, v), (v, u)):
            del self.matrices[one][other]
            if not self.matrices[one]:
                del self.matrices[one]

    def _add(self, u: int, amounts: FloatArray) -> None:
        self.vectors[u] = self.vectors.get(u, 0.0) + amounts

    def settle(self, u: int) -> None:
        """u is eliminated: its amount, the same for all its candidates, is part of the constant."""
        vector = self.vectors.pop(u, None)
        self.constant += 0.0 if vector is None else float(vector[0])

    def frozen(self, position: dict[int, int]) -> Limit:
        vectors = {position[u]: read_only(vector) for u, vector in self.vectors.items()}
        pairs = {
            (position[u], position[v]): read_only(matrix)
            for u, others in self.matrices.items()
            for v, matrix in others.items()
            if u < v
        }
        given = self.given
        return Limit(given.name, given.most, vectors, pairs, self.constant, given.tolerance)
