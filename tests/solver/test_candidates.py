"""Array tests on candidates: sums in disguise, and dominance against every choice of neighbours."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from autoplan.solver.candidates import non_dominated, split_sum


def test_a_sum_of_node_costs_is_no_edge() -> None:
    a, b = np.array([0.1, 0.7, 1e9]), np.array([0.2, 1e-9])
    split = split_sum(np.add.outer(a, b))
    assert split is not None
    np.testing.assert_allclose(np.add.outer(*split), np.add.outer(a, b), rtol=1e-15)
    assert split_sum(np.array([[0.0, 1.0], [1.0, 0.0]])) is None
    assert split_sum(np.array([[0.0, 1e-18], [0.0, 0.0]])) is None  # small is not zero
    assert split_sum(np.array([[1e9, 1e9], [1e9, 1e9 + 1e-5]])) is None  # nor beside large
    assert split_sum(np.array([[0.0, np.inf], [0.0, 0.0]])) is None


def test_dominance_by_hand() -> None:
    cost = np.array([1.0, 0.0, 1.0, 2.0])
    edge = np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0], [np.inf, 0.0]])
    # 2 equals 0, 3 costs more everywhere; 1 is better against one choice, worse against another.
    np.testing.assert_array_equal(non_dominated(cost, [edge]), [True, True, False, False])
    limit = np.array([2.0, 2.0, 1.0, 0.0]), []
    np.testing.assert_array_equal(non_dominated(cost, [edge], [limit]), [False, True, True, True])
    # What 2 adds with a neighbour keeps 0, too.
    pairs = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    kept = non_dominated(cost, [edge], [(limit[0], [pairs])])
    np.testing.assert_array_equal(kept, [True, True, True, True])

    # Where both are forbidden neither is worse; small differences decide; costs may offset edges.
    np.testing.assert_array_equal(
        non_dominated(np.array([0.0, 1.0]), [np.array([[np.inf, 0.0], [np.inf, 0.0]])]),
        [True, False],
    )
    np.testing.assert_array_equal(
        non_dominated(np.array([1e-15, 0.0]), [np.array([[0.0, 1.0], [0.0, 1.0]])]),
        [False, True],
    )
    np.testing.assert_array_equal(
        non_dominated(np.array([0.0, 3.0]), [np.array([[2.0, 0.0], [0.0, 0.0]])]),
        [True, False],
    )


def _sums(vector: np.ndarray, matrices: list[np.ndarray]) -> Iterator[np.ndarray]:
    """What the candidates cost or add, for every choice of the neighbours."""
    for columns in itertools.product(*(range(m.shape[1]) for m in matrices)):
        yield vector + sum(m[:, j] for m, j in zip(matrices, columns, strict=True))


@pytest.mark.parametrize("seed", range(300))
def test_what_is_deleted_has_one_that_is_never_worse(seed: int) -> None:
    """Neither in cost nor in what it adds to any limit, whatever the neighbours choose."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))

    def values(*shape: int) -> np.ndarray:
        return rng.integers(0, 3, shape) * float(rng.choice([1.0, 0.1]))

    cost, edges = values(k) * 2, [values(k, int(rng.integers(1, 4))) for _ in range(2)]
    for edge in edges:
        edge[:, 1:][rng.random((k, edge.shape[1] - 1)) < 0.1] = np.inf
    limits = [
        (values(k) * 2, [values(k, 2)] * int(rng.integers(2))) for _ in range(rng.integers(3))
    ]
    kept = non_dominated(cost, edges, limits)
    assert kept.any()
    for worse in np.flatnonzero(~kept):
        better = kept.copy()
        for vector, matrices in ((cost, edges), *limits):
            for each in _sums(vector, matrices):
                better &= each <= each[worse] + 1e-12
        assert better.any()


def test_dominance_over_many_columns_is_that_over_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, edge = rng.integers(0, 3, 12).astype(float), rng.random((12, 40)) * 2
        edge[rng.random((12, 40)) < 0.01] = np.inf
        kept = non_dominated(cost, [edge])
        for a in np.flatnonzero(~kept):
            with np.errstate(invalid="ignore"):
                worst = np.nan_to_num(edge - edge[a], nan=-np.inf, posinf=np.inf).max(axis=1)
            assert (cost - cost[a] + worst <= 0)[kept].any()
