"""Plain modules with other losses and layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.families import (
    ROWS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Built,
    Loss,
    family,
    sequences,
    tokens,
    vectors,
)

# -- other losses and layers --------------------------------------------------------------------

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "l1": F.l1_loss,
    "poisson": lambda a, b: F.poisson_nll_loss(a, b.abs()),
    "gaussian": lambda a, b: F.gaussian_nll_loss(a, b, a.square() + 0.1),
    "kl": lambda a, b: F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="batchmean"),
    "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1).mean(),
    "triplet": lambda a, b: F.triplet_margin_loss(a, b, b.roll(1, 0)),
    "hinge": lambda a, b: F.relu(1 - a * b.sign()).mean(),
    "soft_margin": lambda a, b: F.soft_margin_loss(a, b.sign()),
    "multilabel": lambda a, b: F.multilabel_soft_margin_loss(a, (b > 0).to(a.dtype)),
    "log_cosh": lambda a, b: torch.log(torch.cosh(a - b)).sum(-1).mean(),
    "logsumexp": lambda a, b: (torch.logsumexp(a, -1) - (a * b.softmax(-1)).sum(-1)).mean(),
    "focal": lambda a, b: ((1 - torch.exp(-F.softplus(a * b.sign()))) ** 2).mean(),
    "quantile": lambda a, b: torch.maximum(0.9 * (a - b), -0.1 * (a - b)).mean(),
    "soft_cross_entropy": lambda a, b: F.cross_entropy(a, b.softmax(-1)),
}


def regression(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Built]:
    def build() -> Built:
        model = Loss(lambda m, x, y: loss(m.layer(x), y), layer=nn.Linear(WIDTH, 9))
        return model, (vectors(), vectors(9)), {}

    return build


for name, loss in LOSSES.items():
    made = regression(loss)
    made.__name__ = f"loss_{name}"
    family(made)


@family
def activations() -> Built:
    kinds = (nn.ELU(), nn.SELU(), nn.CELU(), nn.Softsign(), nn.Mish(), nn.Hardsigmoid(), nn.PReLU(),
             nn.LogSigmoid(), nn.Softplus(), nn.Tanhshrink(), nn.Hardtanh(), nn.Softshrink(),
             nn.GLU())  # fmt: skip
    layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in kinds)

    def forward(m: Any, x: Tensor) -> Tensor:
        found = [kind(layer(x)) for kind, layer in zip(m.kinds, m.layers, strict=True)]
        return torch.cat(found, -1).square().mean()

    return Loss(forward, kinds=nn.ModuleList(kinds), layers=layers), (vectors(),), {}


@family
def other_layers() -> Built:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        z = m.bilinear(x, y)
        z = m.norm(z) + F.rms_norm(z, (12,)) + F.local_response_norm(z[:, :, None], 3)[..., 0]
        z = z.unflatten(-1, (3, 4)).permute(0, 2, 1)
        z = F.max_pool1d(z, 2, padding=1) + F.avg_pool1d(z, 2, padding=1)
        return F.pixel_shuffle(z.reshape(ROWS, 4, 1, 2), 2).square().mean()

    model = Loss(forward, bilinear=nn.Bilinear(WIDTH, 5, 12), norm=nn.BatchNorm1d(12))
    return model, (vectors(), vectors(5)), {}


@family
def unrolled_cells() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 10)
        c = torch.zeros(x.shape[0], 10, device=x.device, dtype=x.dtype)
        for step in x.unbind(1):
            h, c = m.cell(step, (h, c))
        return m.head(h).square().mean()

    return Loss(forward, cell=nn.LSTMCell(WIDTH, 10), head=nn.Linear(10, 3)), (sequences(),), {}


@family
def written_in_place() -> Built:
    def forward(m: Any, ids: Tensor) -> Tensor:
        x = m.embedding(ids)
        out = torch.empty_like(x)
        out[:, 0] = x[:, 0] * 2
        out[:, 1:] = x[:, :-1] + x[:, 1:]
        out[..., ::2] *= 0.5
        mask = torch.zeros(TOKENS, TOKENS)
        mask.masked_fill_(torch.ones(TOKENS, TOKENS).triu(1).bool(), -1e4)
        scores = (out @ out.mT + mask).softmax(-1) * 2
        scores.diagonal(dim1=-2, dim2=-1).add_(0.1)
        return (scores @ m.layer(out)).pow(2).mean()

    model = Loss(forward, embedding=nn.Embedding(VOCABULARY, WIDTH), layer=nn.Linear(WIDTH, WIDTH))
    return model, (tokens(),), {}


@family
def sorted_and_chosen() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        scores = m.layer(x)
        best, at = scores.topk(3, dim=-1)
        ordered, _ = scores.sort(dim=-1, descending=True)
        chosen = torch.gather(scores, -1, at.flip(-1))
        cumulated = torch.cumsum(ordered, -1)
        middle = scores.median(-1).values + scores.amax(-1)
        middle = middle + torch.where(best > 0, best, chosen).sum(-1)
        hot = F.one_hot(at[..., 0], 9).to(x.dtype)
        return (cumulated * hot).mean() + middle.mean() + scores.std() + scores.var(0).sum()

    return Loss(forward, layer=nn.Linear(WIDTH, 9)), (vectors(),), {}


@family
def hypernetwork() -> Built:
    """Weights that another network writes, one set a row; vmap and functional_call."""

    def forward(m: Any, x: Tensor, z: Tensor) -> Tensor:
        written = m.writer(z).view(ROWS, 5, WIDTH)
        y = torch.vmap(lambda w, v: torch.tanh(w @ v))(written, x)
        again = torch.func.functional_call(m.layer, {"weight": written[0]}, (x,))
        return y.square().mean() + again.square().mean()

    writer, layer = nn.Linear(4, 5 * WIDTH), nn.Linear(WIDTH, 5, bias=False)
    return Loss(forward, writer=writer, layer=layer), (vectors(), vectors(4)), {}


@family
def linear_algebra() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        spread = x.mT @ x / x.shape[0] + torch.eye(WIDTH, dtype=x.dtype)
        factor = torch.linalg.cholesky(spread + m.layer.weight @ m.layer.weight.mT)
        solved = torch.linalg.solve_triangular(factor, x.mT, upper=False)
        volume = factor.diagonal().log().sum()
        return volume + solved.square().mean() + torch.linalg.norm(x @ factor)

    return Loss(forward, layer=nn.Linear(WIDTH, WIDTH)), (vectors(),), {}
