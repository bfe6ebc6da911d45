"""Hardware profiles: what one kind of device and its links can do, read from TOML.

The shipped ones lie in `profiles/`. Every number stands with its source, and a peak stands apart
from the fraction of it that programs reach:

    memory_bandwidth_bytes_per_s = { value = 3.35e12, source = "NVIDIA H100 datasheet" }
    memory_bandwidth_fraction = { value = 0.9, source = "device-to-device copy, measured" }
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from autoplan.cost_models.base import unknown_name
from autoplan.errors import ConfigError

_DIRECTORY = Path(__file__).parent / "profiles"

Source = Annotated[str, Meta(min_length=1)]


class Quantity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A positive number in the unit that its field's name says, and where it comes from."""

    value: Annotated[float, Meta(gt=0)]
    source: Source


class Fraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a peak that programs reach, above 0 and at most 1, and where it comes from."""

    value: Annotated[float, Meta(gt=0, le=1)]
    source: Source


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole number of things, at least 1, and where it comes from."""

    value: Annotated[int, Meta(ge=1)]
    source: Source


class PeakFlops(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Peak FLOP/s of a dense matrix multiplication, by dtype; no sparsity, no TF32 for float32."""

    float32: Quantity
    float64: Quantity | None = None
    bfloat16: Quantity | None = None
    float16: Quantity | None = None


class LinkLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A level of the interconnect, per device and in one direction."""

    latency_s: Quantity
    bandwidth_bytes_per_s: Quantity
    bandwidth_fraction: Fraction

    @property
    def achievable_bytes_per_s(self) -> float:
        return self.bandwidth_bytes_per_s.value * self.bandwidth_fraction.value


class Lanes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Links that join the devices of a node to each other, where no switch does.

    value: how many there are from each device (row) to each other one (column), in rank order.
    """

    value: tuple[tuple[Annotated[int, Meta(ge=0)], ...], ...]
    source: Source

    def __post_init__(self) -> None:
        count = len(self.value)
        ranks = range(count)
        if any(len(row) != count for row in self.value) or any(self.value[r][r] for r in ranks):
            raise ValueError("lanes are a row for each device and a column for each, 0 to itself")
        if any(self.value[a][b] != self.value[b][a] for a in ranks for b in ranks):
            raise ValueError("lanes are as many from one device to another as back")

    def share(self, group: Sequence[int]) -> float:
        """The part of a device's lanes that leads to the others of its group: the least of all.

        So much of the link's bandwidth a ring over the group has at most, and NCCL's rings have it
        where the lanes fall into rings, as those of the hybrid cube mesh do.
        """
        most = max(map(sum, self.value))
        return min(sum(self.value[one][other] for other in group) for one in group) / most


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of device: rates, memory, and the two levels of links, `node` and `network`.

    Units are in the names; `kernel_launch_s` is paid by every kernel and every collective.
    `node_link` is all that a device has; `node_lanes` says how it is divided among its neighbours,
    None where a switch lets each have all of it.
    """

    name: str
    device_type: Literal["cuda", "cpu"]
    memory_bytes: Quantity
    devices_per_node: Count
    peak_flops_per_s: PeakFlops
    matmul_fraction: Fraction
    attention_fraction: Fraction
    memory_bandwidth_bytes_per_s: Quantity
    memory_bandwidth_fraction: Fraction
    kernel_launch_s: Quantity
    node_link: LinkLevel
    network_link: LinkLevel
    aliases: tuple[str, ...] = ()
    node_lanes: Lanes | None = None

    @property
    def achievable_memory_bytes_per_s(self) -> float:
        return self.memory_bandwidth_bytes_per_s.value * self.memory_bandwidth_fraction.value

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s in `dtype`; a dtype that the profile does not list runs at float32's rate."""
        listed: Quantity | None = getattr(self.peak_flops_per_s, dtype, None)
        return (listed or self.peak_flops_per_s.float32).value


def load_profile(name_or_path: str | Path) -> Profile:
    """The shipped profile of that name or alias, or the one in the user's own .toml file.

    Raises ConfigError for a name that is not shipped, a file that does not exist, and a file that
    is not such a profile (it names the file and the field).
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml"):
        return _read(Path(name_or_path))
    shipped = _shipped()
    if name_or_path.lower() not in shipped:
        raise unknown_name("hardware profile", name_or_path, sorted(shipped))
    return shipped[name_or_path.lower()]


def profile_names() -> tuple[str, ...]:
    """The names of the shipped profiles, without aliases, sorted."""
    return tuple(sorted({profile.name for profile in _shipped().values()}))


@functools.cache
def _shipped() -> dict[str, Profile]:
    profiles = [_read(path) for path in sorted(_DIRECTORY.glob("*.toml"))]
    return {name: profile for profile in profiles for name in (profile.name, *profile.aliases)}


def _read(path: Path) -> Profile:
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Profile)
    except OSError as error:
        raise ConfigError(
            f"cannot read the hardware profile {str(path)!r}: {error.strerror}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the hardware profile {str(path)!r} is not TOML: {error}.") from error
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the hardware profile {str(path)!r} does not fit: {error}; "
            f"compare with the shipped {str(_DIRECTORY / 'h100.toml')!r}."
        ) from error
