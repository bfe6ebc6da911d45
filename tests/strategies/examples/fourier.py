"""Examples of Fourier transforms; results are real, so that gradients flow."""

from __future__ import annotations

import torch

from tests.strategies.examples.base import (
    add,
    complex_numbers,
    constant,
    real,
)

for _kind in ("fft", "ifft", "rfft"):
    _one, _two, _all = (getattr(torch.fft, _kind + count) for count in ("", "2", "n"))
    add(
        f"fft_{_kind}.default",
        last=(_one, real(5, 4)),
        first=(lambda x, fn=_one: fn(x, n=6, dim=0), real(4, 5)),
    )
    add(f"fft_{_kind}2.default", images=(_two, real(5, 3, 4)))
    add(
        f"fft_{_kind}n.default",
        given=(lambda x, fn=_all: fn(x, dim=(0, 2)), real(3, 5, 4)),
        sized=(lambda x, fn=_all: fn(x, s=(4,)), real(5, 7)),
    )
add("fft_irfft.default", last=(torch.fft.irfft, complex_numbers(5, 4)))
add("fft_irfft2.default", images=(torch.fft.irfft2, complex_numbers(5, 4, 3)))
add("fft_irfftn.default", images=(lambda x: torch.fft.irfftn(x, dim=(-1,)), complex_numbers(5, 4)))
add("fft_fftshift.default", last=(lambda x: torch.fft.fftshift(x, dim=-1), real(5, 4)))
add("fft_ifftshift.default", first=(lambda x: torch.fft.ifftshift(x, dim=(0,)), real(4, 5)))
_window = constant(torch.hann_window(4, dtype=torch.float64))
add(
    "stft.default",
    signals=(
        lambda x, w: torch.stft(x, 4, window=w, center=False, return_complex=True),
        real(5, 16),
        _window,
    ),
)
add(
    "stft.center",
    signals=(
        lambda x: torch.ops.aten.stft.center(x, 4, pad_mode="constant", return_complex=True),
        real(5, 16),
    ),
)
add("istft.default", signals=(lambda x: torch.istft(x, 4), complex_numbers(5, 3, 9)))
