"""Synchronous batch norm: the collectives that it runs are those that its rule prices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.annotate import annotate
from autoplan.mesh import Mesh
from autoplan.pricing import inner_collectives, local_context
from autoplan.proof import observe
from autoplan.strategies import RULES
from tests.strategies.examples import constant, real

aten = torch.ops.aten


class _Recorder:
    """A communicator of one rank whose collectives leave the value as it is."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, str, bool]] = []

    def box(self, x: Tensor, text: str, *, axis: str, sizes: tuple[int, int]) -> Tensor:
        assert text == "P -> B/P"
        self._see(x, axis, backward=False)
        result = x.view_as(x)
        if result.requires_grad:
            result.register_hook(lambda grad: self._see(grad, axis, backward=True))
        return result

    def _see(self, x: Tensor, axis: str, backward: bool) -> None:
        self.seen.append(("all_reduce", x.numel() * x.element_size(), axis, backward))


def _train(x: Any, w: Any, b: Any) -> Any:
    return F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_collectives_of_batch_norm_are_those_priced(
    dtype: torch.dtype, needs_gradient: bool
) -> None:
    mesh = Mesh.of(a=2, b=2)
    x = real(6, 4, 3).to(dtype)
    weight, bias = (real(4).to(torch.promote_types(dtype, torch.float32)) for _ in range(2))
    experiment = observe(_train, x if needs_gradient else constant(x), weight, bias)
    annotated = annotate(experiment.captured, mesh, RULES)
    site = next(each for each in annotated.sites if each.kind == "op")
    assert site.rule is not None
    assert site.rule.program is not None
    synchronised = 0
    for candidate in site.candidates:
        priced = inner_collectives(site, candidate, mesh)
        comm = _Recorder()
        context = local_context(
            site, candidate, mesh, (0, 0), target=aten.batch_norm.default, comm=comm
        )
        shards = [
            torch.ones([high - low for low, high in context.input_ranges(at)], dtype=meta.dtype)
            for at, meta in enumerate(context.call.inputs)
        ]
        for shard, meta in zip(shards, context.call.inputs, strict=True):
            shard.requires_grad_(meta.requires_grad)
        state = (None, None, True, 0.1, 1e-5, False)
        y = site.rule.program(context, *shards, *state)
        assert y.dtype == dtype
        assert y.shape == context.output_shape()
        y.sum().backward()
        expected = [(each.kind, each.size_bytes, each.axis, each.backward) for each in priced]
        assert sorted(comm.seen) == sorted(expected), candidate
        synchronised += bool(priced)
    assert synchronised
