"""Layers: convolutions, pooling, norms, embeddings, attention, softmax, recurrence."""

from __future__ import annotations

from tests.fuzz.draft import Draft
from tests.fuzz.families.base import family


def _image(d: Draft, low: int = 3, high: int = 4) -> str:
    """A batch of signals or images, with a few pixels at least."""
    found = [
        name
        for name, value in d.values.items()
        if hasattr(value, "is_floating_point")
        and value.is_floating_point()
        and low <= value.ndim <= high
        and min(value.shape[2:]) >= 3
    ]
    if found and d.chance(0.7):
        return d.choose(found)
    sizes = [d.choose((3, 4, 5, 7)) for _ in range(d.random.randint(low, high) - 2)]
    return d.new_real(
        d.rows if d.rowwise else d.choose((1, 2, 3, 5)), d.choose((1, 2, 4, 6)), *sizes
    )


@family(2.5, rowwise=True)
def convolution(d: Draft) -> str:
    x = _image(d)
    _, channels, *pixels = d.shape_of(x)
    groups = d.choose([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
    out = groups * d.choose((1, 2, 3))
    window = [d.choose((1, 2, 3)) for _ in pixels]
    weight = d.parameter(out, channels // groups, *window, scale=0.5)
    bias = d.parameter(out) if d.chance(0.5) else "None"
    options = d.choose(
        ("", ", padding=1", ", stride=2, padding=1", ", padding='same'", ", stride=2")
    )
    return f"F.conv{len(pixels)}d({x}, {weight}, {bias}{options}, groups={groups})"


@family(1, rowwise=True)
def transposed_convolution(d: Draft) -> str:
    x = _image(d)
    _, channels, *pixels = d.shape_of(x)
    window = [d.choose((1, 2, 3)) for _ in pixels]
    weight = d.parameter(channels, d.choose((1, 2, 3)), *window, scale=0.5)
    stride = d.choose((1, 2))
    return f"F.conv_transpose{len(pixels)}d({x}, {weight}, stride={stride})"


@family(1.5, rowwise=True)
def pooling(d: Draft) -> str | None:
    x = _image(d)
    n = len(d.shape_of(x)) - 2
    return d.choose(
        (
            f"F.avg_pool{n}d({x}, 2, 1)",
            f"F.max_pool{n}d({x}, 2, 1)",
            f"F.max_pool{n}d({x}, 3, 2, padding=1)",
            f"F.adaptive_avg_pool{n}d({x}, 2)",
            f"F.interpolate({x}, scale_factor=2, mode='nearest')",
            f"F.interpolate({x}, size={5 if n == 1 else (5, 4)}, "
            f"mode='{'linear' if n == 1 else 'bilinear'}', align_corners=True)",
        )
    )


@family(0.6)
def patches(d: Draft) -> str:
    x = _image(d, 4, 4)
    _, channels, *_ = d.shape_of(x)
    if channels % 4 == 0 and d.chance(0.6):
        return f"F.pixel_shuffle({x}, 2)"
    return f"F.unfold({x}, 2)"


@family(2, rowwise=True)
def embedding(d: Draft) -> str:
    rows = d.choose((3, 7, 8, 11))
    shape = d.shape(d.choose((1, 2)))
    options = ", padding_idx=1" if d.chance(0.3) else ""
    return f"F.embedding({d.whole(rows, *shape)}, {d.parameter(rows, d.size())}{options})"


@family(0.5, rowwise=True)
def one_hot(d: Draft) -> str:
    return f"F.one_hot({d.whole(5, *d.shape(1))}, 5).double()"


@family(2.5, rowwise=True)
def layer_norm(d: Draft) -> str | None:
    x = d.real(1 + int(d.rowwise), more=2)
    shape = d.shape_of(x)
    count = d.random.randint(1, max(len(shape) - 1, 1)) if d.chance(0.3) else 1
    last = shape[len(shape) - count :]
    if max(last) == 1:
        return None
    weight = d.parameter(*last) if d.chance(0.7) else "None"
    if d.chance(0.3):
        return f"F.rms_norm({x}, {list(last)}, {weight}, 0.01)"
    bias = d.parameter(*last) if d.chance(0.6) else "None"
    return f"F.layer_norm({x}, {list(last)}, {weight}, {bias}, 0.01)"


@family(1.5, rowwise=True)
def group_norm(d: Draft) -> str | None:
    x = d.real(2)
    channels = d.shape_of(x)[1]
    groups = d.choose([g for g in (1, 2, 3, channels) if channels % g == 0])
    if d.chance(0.3) and len(d.shape_of(x)) > 2:
        return f"F.instance_norm({x}, eps=0.01)"
    weight, bias = (d.parameter(channels) if d.chance(0.7) else "None" for _ in range(2))
    if weight == "None":
        bias = "None"  # torch 2.13 has no backward of a shift without a scale
    return f"F.group_norm({x}, {groups}, {weight}, {bias}, 0.01)"


@family(2)
def batch_norm(d: Draft) -> str | None:
    x = d.real(2)
    shape = d.shape_of(x)
    channels = shape[1]
    if channels == d.value(x).numel():
        return None
    weight, bias = (d.parameter(channels) if d.chance(0.7) else "None" for _ in range(2))
    mean, variance = "None", "None"
    training = "True"
    if d.chance(0.7):
        mean = d.buffer(f"real({d.seed()}, {channels})")
        variance = d.buffer(f"real({d.seed()}, {channels}).square() + 0.5")
        training = "self.training"
    return f"F.batch_norm({x}, {mean}, {variance}, {weight}, {bias}, {training}, 0.3, 0.01)"


@family(2, rowwise=True)
def softmax(d: Draft) -> str:
    x = d.real(1 + int(d.rowwise))
    kind = d.choose(("softmax", "log_softmax", "softmin"))
    return f"F.{kind}({x}, {d.dim(x)})"


@family(0.7, rowwise=True)
def normalized(d: Draft) -> str:
    x = d.real(1 + int(d.rowwise))
    return d.choose(
        (
            f"F.normalize({x} + 2, dim={d.dim(x)})",
            f"F.cosine_similarity({x} + 2, {d.fitting(x)} + 2, dim={d.dim(x)})",
        )
    )


@family(2, rowwise=True)
def attention(d: Draft) -> str:
    batch = d.rows if d.rowwise else d.size()
    heads, groups = d.choose(((1, 1), (2, 1), (4, 1), (4, 2), (3, 1), (6, 2)))
    queries, keys, width = d.choose((2, 3, 5)), d.choose((3, 4, 5)), d.choose((2, 3, 4))
    if d.chance(0.4):
        keys = queries
    q = d.new_real(batch, heads, queries, width)
    same = groups == 1 or d.chance(0.5)
    kv_heads = heads if same else heads // groups
    k, v = d.new_real(batch, kv_heads, keys, width), d.new_real(batch, kv_heads, keys, width)
    found = [n for n, t in d.values.items() if getattr(t, "shape", None) == (batch, heads, queries)]
    if found:
        q = f"({q} * {d.choose(found)}.unsqueeze(-1))"
    options = "" if same else ", enable_gqa=True"
    kind = d.random.random()
    if kind < 0.3 and queries == keys:
        options += ", is_causal=True"
    elif kind < 0.5 and not d.rowwise:
        mask = d.new_real(
            *d.choose(((queries, keys), (1, heads, queries, keys), (batch, 1, 1, keys)))
        )
        options += f", attn_mask={mask}"
    elif kind < 0.6 and not d.rowwise:
        options += f", attn_mask={d.flags(queries, keys)} | torch.eye({queries}, {keys}).bool()"
    if d.chance(0.2):
        options += ", dropout_p=0.2 if self.training else 0.0"
    return f"F.scaled_dot_product_attention({q}, {k}, {v}{options})"


@family(1.5, rowwise=True)
def heads(d: Draft) -> str:
    """Attention of a sequence to itself, its width cut into heads."""
    batch, length = d.rows if d.rowwise else d.size(), d.choose((2, 3, 5))
    number, width = d.choose((2, 3, 4)), d.choose((1, 2, 3))
    found = [n for n, t in d.values.items() if getattr(t, "shape", ())[:2] == (batch, length)]
    found = [n for n in found if len(d.shape_of(n)) == 3 and n.startswith("v")]
    x = d.choose(found) if found else d.new_real(batch, length, d.size())
    columns = d.shape_of(x)[-1]

    def turned() -> str:
        weight = d.parameter(number * width, columns, scale=0.5)
        shape = (-1 if d.rowwise else batch, length, number, width)
        return f"F.linear({x}, {weight}).view{shape}"

    q, k, v = (f"{turned()}.transpose(1, 2)" for _ in range(3))
    causal = d.choose((True, False))
    inner = f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={causal})"
    return f"{inner}.transpose(1, 2).flatten(2)"


@family(0.6)
def recurrence(d: Draft) -> str:
    x = d.real(3, 3)
    _, steps, columns = d.shape_of(x)
    if steps > 6:
        return f"{x}.sin()"
    kind, number = d.choose(("GRU", "RNN", "LSTM")), d.seed()
    d.attribute(
        f"self.r{number} = nn.{kind}({columns}, {d.choose((1, 2, 3))}, batch_first=True, "
        f"dtype=torch.float64)"
    )
    return f"self.r{number}({x})[0]"
