"""Examples of batch, instance and group norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.strategies.examples.base import add, constant, positive, real

aten = torch.ops.aten


def _train(x: Any, w: Any = None, b: Any = None) -> Any:
    return F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5)


def _evaluate(x: Any, mean: Any, var: Any, w: Any = None, b: Any = None) -> Any:
    return F.batch_norm(x, mean, var, w, b, False, 0.1, 1e-5)


def _functional(x: Any, mean: Any, var: Any, w: Any = None, b: Any = None) -> Any:
    return aten._native_batch_norm_legit_functional.default(x, w, b, mean, var, True, 0.3, 1e-5)


def _far(*shape: int) -> torch.Tensor:
    """Where a variance as a difference of squares would lose ten digits."""
    return real(*shape) + 1e4


add(
    "batch_norm.default",
    batch=(_train, real(5, 7, 3), real(7), real(7)),
    pixels=(_train, real(5, 4, 2, 3), real(4), real(4)),
    plain=(_train, real(7, 3)),
    no_bias=(_train, real(2, 6, 1, 4), real(6)),
    volume=(_train, real(3, 2, 2, 3, 2), real(2), real(2)),
    far=(_train, constant(_far(6, 3, 2)), real(3), real(3)),
    constant_rows=(_train, constant(real(5, 4, 2)), real(4), real(4)),
    evaluated=(
        _evaluate,
        real(5, 7, 3),
        constant(real(7)),
        constant(positive(7)),
        real(7),
        real(7),
    ),
    evaluated_plain=(_evaluate, real(5, 4), constant(real(4)), constant(positive(4))),
)
add(
    "_native_batch_norm_legit_functional.default",
    batch=(_functional, real(5, 7, 3), constant(real(7)), constant(positive(7)), real(7), real(7)),
    pixels=(
        _functional,
        real(5, 4, 2, 3),
        constant(real(4)),
        constant(positive(4)),
        real(4),
        real(4),
    ),
    plain=(_functional, real(7, 3), constant(real(3)), constant(positive(3))),
    far=(_functional, constant(_far(6, 4)), constant(real(4)), constant(positive(4)), real(4)),
)


def _instance(x: Any, w: Any = None, b: Any = None) -> Any:
    return F.instance_norm(x, None, None, w, b)


add(
    "instance_norm.default",
    affine=(_instance, real(5, 4, 3), real(4), real(4)),
    plain=(_instance, real(3, 7, 2, 3)),
    evaluated=(
        lambda x, mean, var, w, b: F.instance_norm(x, mean, var, w, b, use_input_stats=False),
        real(5, 7, 3),
        constant(real(7)),
        constant(positive(7)),
        real(7),
        real(7),
    ),
)
add(
    "group_norm.default",
    affine=(lambda x, w, b: F.group_norm(x, 4, w, b), real(5, 8, 3), real(8), real(8)),
    two_groups=(lambda x, w, b: F.group_norm(x, 2, w, b), real(3, 6, 2, 3), real(6), real(6)),
    one_group=(lambda x: F.group_norm(x, 1), real(5, 4)),
    channels=(lambda x, w: F.group_norm(x, 7, w), real(2, 7, 3), real(7)),
)
