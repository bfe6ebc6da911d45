"""Plain modules as people spell them: tricks, structures, numbers of other kinds."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

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

# -- tricks around parameters -------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


@family
def parametrized() -> Built:
    layer = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    head = parametrizations.orthogonal(nn.Linear(WIDTH, 6, bias=False))
    model = Loss(lambda m, x: m.head(torch.tanh(m.layer(x))).square().sum(), layer=layer, head=head)
    return model, (vectors(),), {}


@family
def checkpointed() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = checkpoint(m.first, x, use_reentrant=False)
        return checkpoint(m.second, x, use_reentrant=True).square().mean()

    blocks = (nn.Sequential(nn.Linear(WIDTH, 29), nn.GELU(), nn.Dropout(0.1), nn.Linear(29, WIDTH))
              for _ in range(2))  # fmt: skip
    first, second = blocks
    return Loss(forward, first=first, second=second), (sequences(),), {}


class Scalars(nn.Module):
    """Parameters without dimensions, in lists and dicts; some are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.gates = nn.ParameterList(nn.Parameter(torch.randn(())) for _ in range(3))
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.randn(WIDTH)),
                                       "unused": nn.Parameter(torch.randn(3))})  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.stack(list(self.gates)), 0)
        mixed = sum(w * x**i for i, w in enumerate(weights))
        return (self.gain.clamp(0.1, 2.0) * mixed * self.named["a"]).mean()


@family
def scalar_parameters() -> Built:
    return Scalars(), (vectors(),), {}


@family
def exponential_moving_average() -> Built:
    """A teacher without gradients that follows the student, as BYOL has."""

    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(m.teacher.parameters(), m.student.parameters(), strict=True):
                slow.mul_(0.99).add_(fast, alpha=0.01)
            target = F.normalize(m.teacher(y), dim=-1)
        return 2 - 2 * (F.normalize(m.student(x), dim=-1) * target).sum(-1).mean()

    student, teacher = nn.Linear(WIDTH, 9), nn.Linear(WIDTH, 9).requires_grad_(False)
    return Loss(forward, student=student, teacher=teacher), (vectors(), vectors()), {}


class Reversed(torch.autograd.Function):
    """The value itself, with its gradient the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


@family
def gradient_reversal() -> Built:
    """Training against a domain classifier (Ganin and Lempitsky 2015)."""

    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(m.head(Reversed.apply(m.layer(x))), y)

    model = Loss(forward, layer=nn.Linear(WIDTH, 9), head=nn.Linear(9, CLASSES))
    return model, (vectors(), classes()), {}


@family
def gradient_reversal_by_detach() -> Built:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        hidden = m.layer(x)
        return F.cross_entropy(m.head(2 * hidden.detach() - hidden), y)

    model = Loss(forward, layer=nn.Linear(WIDTH, 9), head=nn.Linear(9, CLASSES))
    return model, (vectors(), classes()), {}


@family
def parameters_cast_to_half() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.second(F.relu(m.first(x)))
        return y.float().square().mean()

    model = Loss(forward, first=nn.Linear(WIDTH, 29), second=nn.Linear(29, 9))
    return model, (vectors(),), {}


# -- structures ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor | None = None


@family
def named_tuple_output() -> Built:
    model = Loss(lambda m, x: Pair(m.layer(x)), layer=nn.Linear(WIDTH, CLASSES))
    return model, (vectors(),), {}


@dataclasses.dataclass
class Record:
    loss: Tensor
    logits: Tensor | None = None
    name: str = "record"


torch.export.register_dataclass(Record)


@family
def dataclass_output() -> Built:
    def forward(m: Any, x: Tensor, *, y: Tensor | None = None, scale: float = 1.0) -> Record:
        logits = m.layer(x) * scale
        return Record(logits.sum() if y is None else F.cross_entropy(logits, y), logits)

    model = Loss(forward, layer=nn.Linear(WIDTH, CLASSES))
    return model, (), {"x": vectors(), "y": classes(), "scale": 2.0}


@family
def any_number_of_arguments() -> Built:
    def forward(m: Any, *features: Tensor, **named: Any) -> list[Any]:
        whole = torch.cat([*features, named["more"]], -1)
        return [m.layer(whole), None, {"flag": named["flag"]}, ()]

    model = Loss(forward, layer=nn.Linear(9, CLASSES))
    parts = (vectors(2), vectors(3))
    return model, parts, {"more": vectors(4), "flag": True, "name": "x", "nothing": None}


@family
def nothing_but_state() -> Built:
    """No argument at all: a table that is fitted to a buffer."""
    model = Loss(lambda m: F.mse_loss(m.table.weight, m.target), table=nn.Embedding(11, WIDTH))
    model.register_buffer("target", torch.randn(11, WIDTH))
    return model, (), {}


# -- numbers of other kinds ---------------------------------------------------------------------


@family
def fourier_mixing() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
        filtered = spectrum * torch.view_as_complex(m.filter)
        return m.layer(torch.fft.irfft(filtered, n=x.shape[1], dim=1, norm="ortho")).square().mean()

    model = Loss(forward, layer=nn.Linear(WIDTH, WIDTH))
    model.filter = nn.Parameter(torch.randn(TOKENS // 2 + 1, WIDTH, 2))
    return model, (sequences(),), {}


@family
def spectrogram() -> Built:
    def forward(m: Any, waves: Tensor) -> Tensor:
        found = torch.stft(waves, 16, 8, window=m.window, return_complex=True)
        return m.layer(found.abs().pow(2).clamp_min(1e-6).log().transpose(1, 2)).mean()

    model = Loss(forward, layer=nn.Linear(9, 4))
    model.register_buffer("window", torch.hann_window(16))
    return model, (torch.randn(ROWS, 64),), {}


@family
def complex_parameters() -> Built:
    def forward(m: Any, x: Tensor) -> Tensor:
        z = x.to(m.weight.dtype) @ m.weight
        return (z * z.conj()).real.mean()

    model = Loss(forward)
    model.weight = nn.Parameter(torch.randn(WIDTH, 9, dtype=torch.complex64))
    return model, (vectors(),), {}


@family
def rotary_by_complex_numbers() -> Built:
    """Llama's own rotary embedding."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q = m.layer(x).view(ROWS, TOKENS, 4, 6)
        z = torch.view_as_complex(q.float().reshape(ROWS, TOKENS, 4, 3, 2))
        q = torch.view_as_real(z * m.rotations[None, :, None, :]).flatten(3)
        return (q @ q.transpose(-1, -2)).square().mean()

    model = Loss(forward, layer=nn.Linear(WIDTH, WIDTH))
    angles = torch.outer(torch.arange(TOKENS).float(), torch.tensor([1.0, 0.1, 0.01]))
    model.register_buffer("rotations", torch.polar(torch.ones_like(angles), angles))
    return model, (sequences(),), {}
