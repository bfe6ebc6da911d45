"""Plain modules of other architectures: mixers, graphs, generative models."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.families import (
    CLASSES,
    ROWS,
    TOKENS,
    WIDTH,
    Built,
    Loss,
    classes,
    family,
    sequences,
    vectors,
)

# -- mixers and convolutions over time ----------------------------------------------------------


class Mixer(nn.Module):
    """One block of an MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.across = nn.Sequential(nn.Linear(TOKENS, 13), nn.GELU(), nn.Linear(13, TOKENS))
        self.within = nn.Sequential(nn.Linear(WIDTH, 29), nn.GELU(), nn.Linear(29, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


@family
def mlp_mixer() -> Built:
    model = Loss(lambda m, x, y: F.cross_entropy(m.head(m.mixer(x).mean(1)), y), mixer=Mixer(),
                 head=nn.Linear(WIDTH, CLASSES))  # fmt: skip
    return model, (sequences(), classes()), {}


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**i) for i in range(3))
        self.outs = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.last = nn.Conv1d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), 0
        for i, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            z = torch.tanh(a) * torch.sigmoid(b)
            skips = skips + z
            x = x + out(z)
        return self.last(F.relu(skips))


@family
def wavenet() -> Built:
    model = Loss(lambda m, x, y: F.cross_entropy(m.net(x), y), net=WaveNet())
    return model, (torch.randn(ROWS, 1, 19), torch.randint(0, 16, (ROWS, 19))), {}


@family
def temporal_convolution_with_weight_norm() -> Built:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(3, 8, 3, padding=4, dilation=2)), nn.ReLU(),
        nn.Dropout(0.1), parametrizations.weight_norm(nn.Conv1d(8, 5, 3)),
    )  # fmt: skip
    model = Loss(lambda m, x: m.net(x).square().mean(), net=net)
    return model, (torch.randn(ROWS, 3, 19),), {}


@family
def convolutions_of_volumes() -> Built:
    net = nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU6(), nn.MaxPool3d(2),
        nn.ConvTranspose3d(6, 3, 2, 2), nn.InstanceNorm3d(3, affine=True), nn.Hardswish(),
    )  # fmt: skip
    model = Loss(lambda m, x: m.net(x).square().mean(), net=net)
    return model, (torch.randn(ROWS, 2, 4, 6, 6),), {}


# -- graphs -------------------------------------------------------------------------------------


class GraphLayer(nn.Module):
    """Messages along edges, summed at their ends; `how` names the op that sums."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.message = nn.Linear(2 * WIDTH, WIDTH)
        self.update = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = F.silu(self.message(torch.cat([x[source], x[target]], -1)))
        if self.how == "index_add":
            gathered = torch.zeros_like(x).index_add_(0, target, messages)
        elif self.how == "scatter_add":
            index = target[:, None].expand_as(messages)
            gathered = torch.zeros_like(x).scatter_add(0, index, messages)
        else:
            index = target[:, None].expand_as(messages)
            gathered = torch.zeros_like(x).scatter_reduce(0, index, messages, self.how)
        return self.update(gathered, x)


def graph(how: str) -> Built:
    def forward(m: Any, x: Tensor, edges: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(m.head(m.layer(x, edges)), -1), y)

    model = Loss(forward, layer=GraphLayer(how), head=nn.Linear(WIDTH, CLASSES))
    nodes = 11
    edges = torch.randint(0, nodes, (2, 31))
    return model, (torch.randn(nodes, WIDTH), edges, torch.randint(0, CLASSES, (nodes,))), {}


@family
def graph_by_index_add() -> Built:
    return graph("index_add")


@family
def graph_by_scatter_add() -> Built:
    return graph("scatter_add")


@family
def graph_by_scatter_mean() -> Built:
    return graph("mean")


@family
def graph_by_scatter_max() -> Built:
    return graph("amax")


class GraphAttention(nn.Module):
    """GAT: softmax over the edges that end at one node, by dense adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 8, bias=False)
        self.left, self.right = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.layer(x)
        scores = F.leaky_relu((h @ self.left)[:, None] + (h @ self.right)[None, :], 0.2)
        scores = scores.masked_fill(~adjacency, float("-inf"))
        return F.elu(torch.softmax(scores, -1) @ h)


@family
def graph_attention() -> Built:
    model = Loss(lambda m, x, a: m.net(x, a).square().mean(), net=GraphAttention())
    return model, (torch.randn(11, WIDTH), torch.eye(11, dtype=torch.bool).roll(1, 0)), {}


# -- generative models --------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """A variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(WIDTH, 29), nn.ReLU(), nn.Linear(29, 10))
        self.decode = nn.Sequential(nn.Linear(5, 29), nn.ReLU(), nn.Linear(29, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        loss = F.binary_cross_entropy(torch.sigmoid(self.decode(z)), x, reduction="sum")
        return (loss + divergence) / x.shape[0], z


@family
def variational_autoencoder() -> Built:
    return Autoencoder(), (torch.rand(ROWS, WIDTH),), {}


@family
def generator_and_discriminator() -> Built:
    def forward(m: Any, real: Tensor) -> dict[str, Tensor]:
        fake = m.generator(torch.randn(real.shape[0], 4, device=real.device))
        on_real, on_fake = m.critic(real), m.critic(fake.detach())
        d = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        return {"generator": F.softplus(-m.critic(fake)).mean(), "critic": d}

    critic = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(WIDTH, 13)), nn.LeakyReLU(0.2), nn.Linear(13, 1)
    )
    generator = nn.Sequential(nn.Linear(4, 13), nn.BatchNorm1d(13), nn.ReLU(), nn.Linear(13, WIDTH))
    return Loss(forward, generator=generator, critic=critic), (vectors(),), {}


@family
def gumbel_softmax() -> Built:
    def forward(m: Any, x: Tensor, hard: bool) -> Tensor:
        choice = F.gumbel_softmax(m.scores(x), tau=0.7, hard=hard)
        return F.mse_loss(choice @ m.codes.weight, x)

    model = Loss(forward, scores=nn.Linear(WIDTH, 9), codes=nn.Embedding(9, WIDTH))
    return model, (vectors(), False), {}


@family
def vector_quantised() -> Built:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        z = m.encode(x)
        nearest = torch.cdist(z, m.codes.weight).argmin(-1)
        q = m.codes(nearest)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return loss + F.mse_loss(m.decode(z + (q - z).detach()), x), nearest

    model = Loss(forward, encode=nn.Linear(WIDTH, 8), decode=nn.Linear(8, WIDTH),
                 codes=nn.Embedding(17, 8))  # fmt: skip
    return model, (vectors(),), {}


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    half = width // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * rates[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


class Denoiser(nn.Module):
    """A diffusion U-Net: residual blocks with a time, attention in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.inward = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.shift = nn.Linear(16, 16)
        self.norm2, self.conv2 = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, 2, 1)
        self.norm3, self.qkv = nn.GroupNorm(4, 16), nn.Conv1d(16, 48, 1)
        self.out = nn.Conv1d(16, 16, 1)
        self.up = nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 3, 1)

    def attend(self, x: Tensor, heads: int = 4) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm3(x).view(b, c, -1)).chunk(3, dim=1)
        parts = (each.reshape(b * heads, c // heads, h * w) for each in (q, k, v))
        q, k, v = parts
        weights = torch.einsum("bct,bcs->bts", q, k) / math.sqrt(c / heads)
        a = torch.einsum("bts,bcs->bct", weights.softmax(-1), v).reshape(b, c, h * w)
        return x + self.out(a).reshape(b, c, h, w)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.shift(self.time(timestep_embedding(t, 8)))[:, :, None, None].chunk(2, 1)
        a = self.inward(x)
        h = self.conv1(F.silu(self.norm1(a)))
        h = self.norm2(h) * (1 + scale) + shift
        h = a + self.conv2(F.silu(h))
        m = self.attend(self.down(h))
        u = self.up(F.interpolate(m, scale_factor=2, mode="nearest"))
        return self.last(torch.cat([u, h], 1))


@family
def diffusion() -> Built:
    def forward(m: Any, x: Tensor, t: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        level = m.schedule[t][:, None, None, None]
        return F.mse_loss(m.net(level.sqrt() * x + (1 - level).sqrt() * noise, t), noise)

    model = Loss(forward, net=Denoiser())
    model.register_buffer("schedule", torch.linspace(0.99, 0.01, 50).cumprod(0))
    return model, (torch.randn(ROWS, 3, 8, 8), torch.randint(0, 50, (ROWS,))), {}
