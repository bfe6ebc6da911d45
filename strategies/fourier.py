"""Fourier transforms: linear, and whole along the dimensions that they transform."""

from __future__ import annotations

from autoplan.strategies.rule import OpCall, Rule

_LINEAR = (frozenset({0}),)


def _transformed(call: OpCall) -> list[int]:
    """Transformed dimensions: the one given, the last two, or those given, else all."""
    name, ndim = call.op.split(".")[1], len(call.inputs[0].shape)
    position = 1 if name.endswith("shift") else 2
    default = None if name.endswith(("n", "shift")) else (-2, -1) if name.endswith("2") else -1
    dims = call.argument(position, "dim", default)
    if dims is None:
        sizes = None if name.endswith("shift") else call.argument(1, "s")
        return list(range(ndim - len(sizes), ndim)) if sizes is not None else list(range(ndim))
    return [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)]


def _transform(call: OpCall) -> str:
    dims, count = _transformed(call), len(call.inputs[0].shape)
    before = [f"[d{i}]" if i in dims else f"d{i}" for i in range(count)]
    after = [f"[f{i}]" if i in dims else f"d{i}" for i in range(count)]
    return f"{' '.join(before)} -> {' '.join(after)}"


def _short_time(call: OpCall) -> str | None:
    """Each signal of a batch by itself: frequencies by frames, or back."""
    inverse = "istft" in call.op
    batch = len(call.inputs[0].shape) - (2 if inverse else 1)
    names = "n" if batch else ""
    parts = " ".join(f"[p{i}]" for i in range(len(call.outputs[0].shape) - batch))
    signal = "[f] [t]" if inverse else "[t]"
    window = ", [w]" * (len(call.inputs) - 1)
    return f"{names} {signal}{window} -> {names} {parts}"


def _saves(call: OpCall) -> tuple[int | str, ...]:
    """Real signals are kept, if only for their shape."""
    return () if call.inputs[0].dtype.is_complex or "shift" in call.op else (0,)


_TRANSFORM = Rule(_transform, partial=_LINEAR, saves=_saves, needs_rows=True)
_SHORT_TIME = Rule(_short_time, partial=_LINEAR, saves=(1,), needs_rows=True)

_TRANSFORMS = [
    f"{kind}{count}" for kind in ("fft", "ifft", "rfft", "irfft") for count in ("", "2", "n")
]

RULES: dict[str, Rule] = {
    **{f"aten.fft_{name}.default": _TRANSFORM for name in _TRANSFORMS},
    "aten.fft_fftshift.default": _TRANSFORM,
    "aten.fft_ifftshift.default": _TRANSFORM,
    "aten.stft.default": _SHORT_TIME,
    "aten.stft.center": _SHORT_TIME,
    "aten.istft.default": _SHORT_TIME,
}
