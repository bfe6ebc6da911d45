"""A preset's gather policy gives way where a reader has to box what the body would gather."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan
from autoplan.annotate import annotate
from autoplan.errors import InfeasibleError
from autoplan.memory.within_memory import _no_plan
from autoplan.mesh import Mesh
from autoplan.proof import observe
from autoplan.strategies import RULES


class Biased(nn.Module):
    """Attention whose bias is a parameter, of which every query row has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)
        self.bias = nn.Parameter(torch.randn(1, 4, 12, 12))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (e.unflatten(-1, (4, 4)).transpose(1, 2) for e in self.qkv(x).split(16, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.out(y.transpose(1, 2).flatten(2)).square().mean()


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("mode", ["ring", "ulysses"])
def test_a_bias_that_attention_cuts_is_gathered_once_a_step(mode: str, zero: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 12, 8, dtype=torch.float64)
    model = Biased()
    truth = {path: each.detach().clone() for path, each in model.named_parameters()}
    loss = model(x)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    parallel: dict[str, Any] = {
        "data": {"size": 2, "zero": zero},
        "sequence": {"size": 2, "mode": mode},
    }
    module = autoplan.parallelize(
        model, (x,), devices=4, cluster="cpu", microbatches=2, parallel=parallel
    )
    assert torch.allclose(module.train_step((x,)).loss, loss, rtol=1e-9, atol=0.0)
    for (path, each), true in zip(module.named_parameters(), gradients, strict=True):
        assert torch.equal(each.detach(), truth[path])
        assert each.grad is not None
        assert float((each.grad - true).abs().max()) <= 1e-9 * float(gradients[0].abs().max())
    notes = " ".join(module.plan.notes)
    assert f"preset 'zero{zero}' does not fit 'bias' and is not applied there" in notes
    assert "'qkv.weight'" not in notes


def test_a_conflict_names_what_the_model_names() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    annotated = annotate(observe(lambda w: w.relu(), weight).captured, Mesh.of(d=2), RULES)
    for site in annotated.sites:
        text = str(_no_plan(InfeasibleError(f"no candidate of {site.name!r} is left"), annotated))
        assert "no candidate of" not in text
        assert f"no strategy of an op joins, where parameter {site.path!r} is read" in text or (
            site.kind != "parameter" and "no strategy of an op joins, near an op" in text
        )
