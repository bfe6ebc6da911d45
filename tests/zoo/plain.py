"""Plain modules: no config, no library but torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.families import (
    CLASSES,
    ROWS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Built,
    classes,
    family,
    tokens,
)

HEADS = 12


class Encoder(nn.Module):
    """nn.TransformerEncoder with a padding mask and a mean over what is not padding."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 29, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, padding: Tensor | None, y: Tensor) -> Tensor:
        hidden = self.encoder(x, src_key_padding_mask=padding)
        if padding is None:
            return F.cross_entropy(self.head(hidden.mean(1)), y)
        kept = (~padding)[..., None].to(hidden.dtype)
        return F.cross_entropy(self.head((hidden * kept).sum(1) / kept.sum(1)), y)


@family
def transformer_encoder() -> Built:
    padding = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    padding[2, 4:] = True
    return Encoder(), (torch.randn(ROWS, TOKENS, WIDTH), padding, classes()), {}


@family
def transformer_encoder_norm_first() -> Built:
    x = torch.randn(ROWS, TOKENS, WIDTH)
    return Encoder(norm_first=True, activation="gelu"), (x, None), {"y": classes()}


class Attention(nn.Module):
    """nn.MultiheadAttention across two sequences; returns a tuple with the weights or None."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            WIDTH, HEADS, dropout=0.1, batch_first=True, **options
        )

    def forward(self, x: Tensor, y: Tensor, weights: bool = True) -> tuple[Tensor, Tensor | None]:
        out, found = self.attention(x, y, y, need_weights=weights)
        return x + out, found


@family
def multihead_attention() -> Built:
    return Attention(), (torch.randn(ROWS, TOKENS, WIDTH), torch.randn(ROWS, 5, WIDTH)), {}


@family
def multihead_attention_without_weights() -> Built:
    model = Attention(add_bias_kv=True, kdim=10, vdim=10)
    given = (torch.randn(ROWS, TOKENS, WIDTH), torch.randn(ROWS, 5, 10))
    return model, given, {"weights": False}


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut, in place where torchvision is."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """torchvision's ResNet with two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.Sequential(Block(8, 8), Block(8, 14, 2))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm1(self.conv1(x)), inplace=True))
        x = torch.flatten(self.average(self.stages(x)), 1)
        return F.cross_entropy(self.head(x), y, label_smoothing=0.1)


@family
def resnet_with_batch_norm() -> Built:
    return ResNet(), (torch.randn(ROWS, 3, 32, 32), classes()), {}


def convolved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()
    )


class UNet(nn.Module):
    """Down, across and up with a skip connection; a condition is added in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = convolved(3, 8), convolved(8, 12)
        self.pool = nn.MaxPool2d(2)
        self.condition = nn.Linear(4, 12)
        self.dropout = nn.Dropout2d(0.1)
        self.middle = convolved(12, 12)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.up1 = convolved(16, 8)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        skipped = self.down1(x)
        inner = self.down2(self.pool(skipped)) + self.condition(condition)[:, :, None, None]
        inner = self.middle(self.dropout(inner))
        inner = F.interpolate(inner, scale_factor=2.0, mode="nearest")
        inner = self.up(F.avg_pool2d(inner, 2))
        return F.mse_loss(self.last(self.up1(torch.cat([inner, skipped], 1))), y)


@family
def unet_with_group_norm() -> Built:
    x, y = torch.randn(2, ROWS, 3, 16, 16)
    return UNet(), (x, torch.randn(ROWS, 4), y), {}


class Recurrent(nn.Module):
    """Words through a recurrent layer of two levels, to the next word."""

    def __init__(self, layer: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.layer = layer(12, 10, 2, dropout=0.1, **options)
        self.head = nn.Linear(20 if options.get("bidirectional") else 10, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.layer(self.embedding(ids))
        return F.cross_entropy(self.head(out[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@family
def lstm() -> Built:
    return Recurrent(nn.LSTM, batch_first=True), (tokens(),), {}


@family
def lstm_both_ways() -> Built:
    return Recurrent(nn.LSTM, batch_first=True, bidirectional=True), (tokens(),), {}


@family
def gru_time_first() -> Built:
    return Recurrent(nn.GRU), (tokens(),), {}


class Recommender(nn.Module):
    """DLRM: tables of very different sizes, a bag, and the products of all pairs."""

    SIZES = (1009, 57, 13)

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 8) for size in self.SIZES)
        self.bag = nn.EmbeddingBag(211, 8, mode="sum")
        self.bottom = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, sparse: Tensor, bag: Tensor, y: Tensor) -> Tensor:
        found = [table(sparse[:, i]) for i, table in enumerate(self.tables)]
        vectors = torch.stack([self.bottom(dense), *found, self.bag(bag)], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        rows, columns = torch.tril_indices(5, 5, -1)
        features = torch.cat([vectors[:, 0], products[:, rows, columns]], 1)
        return F.binary_cross_entropy_with_logits(self.top(features).squeeze(1), y)


@family
def recommender() -> Built:
    sparse = torch.stack([torch.randint(0, n, (ROWS,)) for n in Recommender.SIZES], 1)
    bag = torch.randint(0, 211, (ROWS, 3))
    return Recommender(), (torch.randn(ROWS, 5), sparse, bag, torch.rand(ROWS)), {}


class TwoTowers(nn.Module):
    """Contrastive learning: two losses in a dict, and a temperature without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 8))
        self.right = nn.Sequential(nn.Linear(7, 16), nn.GELU(), nn.Linear(16, 8))
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        a, b = F.normalize(self.left(x), dim=-1), F.normalize(self.right(y), dim=-1)
        logits = a @ b.T * self.temperature.exp()
        own = torch.arange(logits.shape[0], device=logits.device)
        return {"left": F.cross_entropy(logits, own), "right": F.cross_entropy(logits.T, own)}


@family
def two_towers() -> Built:
    return TwoTowers(), (torch.randn(ROWS, 9), torch.randn(ROWS, 7)), {}


class Structured(nn.Module):
    """Dicts, tuples, None, numbers and text, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        batch: dict[str, Any],
        pair: tuple[Tensor, Tensor | None],
        mode: str = "sum",
        scale: float | None = None,
    ) -> dict[str, Any]:
        out = self.layer(batch["x"]["left"]) + batch["x"]["right"][0]
        first, second = pair
        out = out * first if second is None else out * first + second
        if scale is not None:
            out = out * scale
        reduced = out.sum(-1) if mode == "sum" else out.mean(-1)
        return {"out": (out, [reduced, None]), "mode": mode, "nothing": None, "count": 3}


@family
def structured() -> Built:
    left, right, factor = torch.randn(3, ROWS, WIDTH)
    batch = {"x": {"left": left, "right": [right]}}
    return Structured(), (batch, (factor, None)), {"mode": "mean", "scale": 0.5}


class Adapted(nn.Module):
    """A frozen linear with a low-rank adapter beside it (LoRA)."""

    def __init__(self, inputs: int, outputs: int, rank: int = 3) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(self.dropout(x)))


class LowRank(nn.Module):
    """A frozen embedding and trunk with adapters, and a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.layers = nn.Sequential(Adapted(WIDTH, 29), nn.GELU(), Adapted(29, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.norm(self.layers(self.embedding(ids))).mean(1))
        return logits if labels is None else (F.cross_entropy(logits, labels), logits)


@family
def low_rank_adapters() -> Built:
    return LowRank(), (tokens(),), {"labels": classes()}


class UsedTwice(nn.Module):
    """One embedding at both ends, one layer run three times, one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.twin = nn.Linear(WIDTH, WIDTH)
        self.twin.weight = self.layer.weight
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for _ in range(3):
            x = x + torch.tanh(self.layer(x))
        logits = self.head(self.twin(x))
        return F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())


@family
def parameters_used_twice() -> Built:
    return UsedTwice(), (tokens(),), {}


class WithoutParameters(nn.Module):
    """Only arithmetic; what is trained, if anything, is the input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = torch.softmax(x @ y.transpose(-1, -2), -1)
        return (weights @ y - x).square().mean()


@family
def no_parameters() -> Built:
    x, y = torch.randn(2, ROWS, TOKENS, WIDTH)
    return WithoutParameters(), (x, y), {}
