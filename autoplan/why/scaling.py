"""Scaling: a hardware profile with one of its rates times a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from autoplan.cost_models.profile import LinkLevel, PeakFlops, Profile, Quantity


def rates(profile: Profile) -> Iterator[tuple[str, float, Callable[[float], Profile]]]:
    """Quantities of a profile: name, value, and the profile with that value times a factor."""
    for name, field in (("node bandwidth", "node_link"), ("network bandwidth", "network_link")):
        link: LinkLevel = getattr(profile, field)

        def faster(factor: float, link: LinkLevel = link, field: str = field) -> Profile:
            rate = _times(link.bandwidth_bytes_per_s, factor)
            return msgspec.structs.replace(
                profile, **{field: msgspec.structs.replace(link, bandwidth_bytes_per_s=rate)}
            )

        yield name, link.achievable_bytes_per_s, faster
    peaks = profile.peak_flops_per_s

    def computes(factor: float) -> Profile:
        listed = {name: getattr(peaks, name) for name in peaks.__struct_fields__}
        scaled = {name: _times(each, factor) for name, each in listed.items() if each is not None}
        return msgspec.structs.replace(profile, peak_flops_per_s=PeakFlops(**scaled))

    yield "compute rate", peaks.float32.value, computes


def _times(quantity: Quantity, factor: float) -> Quantity:
    return Quantity(quantity.value * factor, f"{factor:g} x {quantity.source}")
