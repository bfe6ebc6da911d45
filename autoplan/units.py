"""Numbers with units, as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A time with a unit that leaves few digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return (
                f"{value / scale:.3g} {unit}"
                if value < 1000 * scale
                else f"{value / scale:,.0f} {unit}"
            )
    return "0 s" if value == 0 else f"{value / 1e-6:.2g} us"


def size(value: float) -> str:
    """Bytes with a decimal unit."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.0f} B"
