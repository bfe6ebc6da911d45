"""Row 33 of the capability table, simulated and on real gloo ranks.

Rows 16 and 17 are in test_rows_of_models and test_rows_of_layouts, rows 18, 19, 34 and 35 in
test_rows_of_pipelines.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from tests.capabilities.mode_ranks import MODES, Handled, addends, handle, modes_on_four
from tests.models import Mlp, ideal_cluster, vector_batch
from tests.runtime.launch import run_ranks


@pytest.fixture(scope="module")
def four_ranks() -> list[Any]:
    return run_ranks(modes_on_four, 4, timeout_s=200)


def check(seen: Handled) -> None:
    """Once for each parameter on each rank, though there are two microbatches."""
    assert seen.calls == dict.fromkeys(seen.paths, seen.here)
    assert seen.calls_after == 0
    for what, error in seen.errors.items():
        assert error <= 1e-12, what


@pytest.mark.parametrize("mode", MODES)
def test_row_33_a_handler_is_called_once_for_each_parameter(mode: str) -> None:
    check(handle(mode))


def test_row_33_on_real_ranks(four_ranks: list[Any]) -> None:
    for found, _ in four_ranks:
        for mode in MODES:
            check(found[mode])


def test_row_33_a_handler_gets_what_is_not_summed_yet() -> None:
    """The ranks' own gradients, which differ, and whose sum is the default."""
    for path, (*parts, whole) in addends().items():
        assert len(parts) == 4, path
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-15)
        assert not torch.allclose(parts[0], parts[1])


def test_row_33_addends_on_real_ranks(four_ranks: list[Any]) -> None:
    for path, (_, whole) in four_ranks[0][1].items():
        parts = [found[path][0] for _, found in four_ranks]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-15)


def module() -> tuple[autoplan.ParallelModule, tuple[Any, ...]]:
    torch.manual_seed(0)
    args, kwargs = vector_batch(8)
    given = {"devices": 4, "cluster": ideal_cluster(4), "preset": "fsdp"}
    return autoplan.parallelize(Mlp(), args, kwargs, **given), args


def only_on_one(path: str, gradient: Any, reduce: Any) -> Any:
    only_on_one.calls = getattr(only_on_one, "calls", 0) + 1  # type: ignore[attr-defined]
    first = only_on_one.calls == 1  # type: ignore[attr-defined]
    return gradient[: len(gradient) // 4] if first else reduce(gradient)


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (lambda path, gradient, reduce: None, "returned a NoneType for 'fc1.weight'|'fc"),
        (lambda path, gradient, reduce: gradient, r"returned float64\[.*shard here is"),
        (lambda path, gradient, reduce: reduce(gradient).float(), "returned float32.*the param"),
        (lambda path, gradient, reduce: reduce(gradient[:1, ...]), "called reduce with float64"),
        (only_on_one, "on some ranks and not on others"),
    ],
)
def test_a_handler_that_does_otherwise_is_refused(handler: Any, says: str) -> None:
    parallel, args = module()
    parallel.register_gradient_handler(handler)
    with pytest.raises(autoplan.InputError, match=says):
        parallel(*args).backward()


def test_what_a_handler_raises_is_raised() -> None:
    def fails(path: str, gradient: Any, reduce: Any) -> Any:
        raise LookupError(path)

    parallel, args = module()
    parallel.register_gradient_handler(fails)
    with pytest.raises(LookupError, match="fc"):
        parallel(*args).backward()


def test_a_second_handler_and_one_that_is_none_are_refused() -> None:
    parallel, _ = module()
    with pytest.raises(autoplan.ConfigError, match="function handler"):
        parallel.register_gradient_handler("all_reduce")  # type: ignore[arg-type]
    handle = parallel.register_gradient_handler(lambda path, gradient, reduce: reduce(gradient))
    with pytest.raises(autoplan.ConfigError, match="already"):
        parallel.register_gradient_handler(lambda path, gradient, reduce: reduce(gradient))
    handle.remove()
    parallel.register_gradient_handler(lambda path, gradient, reduce: reduce(gradient)).remove()


def test_a_frozen_parameter_is_not_handled() -> None:
    torch.manual_seed(0)
    model = Mlp()
    model.fc1.requires_grad_(False)
    args, kwargs = vector_batch(8)
    parallel = autoplan.parallelize(
        model, args, kwargs, devices=2, cluster=ideal_cluster(2), preset="fsdp"
    )
    paths = set()

    def keep(path: str, gradient: Any, reduce: Any) -> Any:
        paths.add(path)
        return reduce(gradient)

    parallel.register_gradient_handler(keep)
    parallel(*args, **kwargs).backward()
    assert paths == {"fc2.weight", "fc2.bias"}
