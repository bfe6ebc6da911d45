"""Parts of `parallel`: what each entry but the pipeline makes of its devices.

A part is read once, and then asked for the ways to use some number of devices: its mesh axes from
the outermost on, each with the preset that it is bound to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autoplan.errors import ConfigError
from autoplan.parallel.checks import check_key, check_name, listed, positive

DATA_KEYS = ("size", "mode", "zero", "shard")
TENSOR_KEYS = ("size", "mode", "depth", "sequence_parallel")
SEQUENCE_KEYS = ("size", "mode")
EXPERT_KEYS = ("size",)

DATA_MODES = ("data", "ddp", "fsdp", "hsdp")
ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}
"""Presets of ZeRO's stages, as `data=dict(zero=...)` numbers them."""
GRIDS = ("2d", "2.5d", "3d")
TENSOR_MODES = ("1d", *GRIDS, "free")
ONE_D = {"1d": None, "megatron": False, "megatron-sp": True}
"""Presets of the mode 1d, and the `sequence_parallel` that each stands for."""
SEQUENCE_PRESETS = ("ulysses", "ring")
SEQUENCE_MODES = (*SEQUENCE_PRESETS, "free")


@dataclass(frozen=True)
class Axis:
    """A mesh axis of a part; `scheme` is a preset, None leaves it to the planner."""

    name: str
    size: int
    scheme: str | None = None


@dataclass(frozen=True)
class Way:
    """One way to use the devices of a part: axes from the outermost on, and the entry for it."""

    axes: tuple[Axis, ...]
    entry: Mapping[str, Any]


class Part(Protocol):
    """What one entry asks for. `size` is None where it was left out; `text` is what was written."""

    @property
    def size(self) -> int | None: ...

    @property
    def text(self) -> str: ...

    def ways(self, size: int, inner: int, node_size: int | None) -> Iterator[Way]:
        """Ways to use `size` devices, `inner` ranks apart; ConfigError where there is none."""
        ...


@dataclass(frozen=True)
class DataPart:
    """The batch split. `scheme`: a preset, or "hsdp": whole copies of what `shard` ranks split."""

    size: int | None
    scheme: str
    text: str
    zero: int | None = None
    shard: int | None = None

    def ways(self, size: int, inner: int, node_size: int | None) -> Iterator[Way]:
        if self.scheme != "hsdp":
            stage = ZERO.get(self.scheme)
            entry = {"size": size, **({"zero": stage} if stage else {"mode": self.scheme})}
            yield Way((Axis("data", size, self.scheme),), entry)
            return
        split = f"zero{self.zero}" if self.zero else "fsdp"
        more = {"zero": self.zero} if self.zero else {}
        for shard in self._shards(size, inner, node_size):
            axes = Axis("replicate", size // shard, "ddp"), Axis("shard", shard, split)
            yield Way(axes, {"size": size, "mode": "hsdp", "shard": shard, **more})

    def _shards(self, size: int, inner: int, node_size: int | None) -> list[int]:
        """The given one; else the ranks of a node, where copies of them remain; else any."""
        if self.shard is not None:
            if size % self.shard:
                fitting = ", ".join(map(str, divisors(size)))
                raise ConfigError(
                    f"data shard={self.shard} does not divide data size {size}; use one of "
                    f"{fitting}."
                )
            return [self.shard]
        if size == 1:
            return [1]
        proper = [shard for shard in divisors(size) if 1 < shard < size]
        if not proper:
            raise ConfigError(
                f"data size {size} cannot be copies of shards, as mode='hsdp' asks, since it has "
                f"no two factors; use mode='fsdp' or 'ddp', or a size such as {2 * size}."
            )
        local = node_size // inner if node_size is not None and node_size % inner == 0 else 0
        return [local] if local in proper else proper


@dataclass(frozen=True)
class TensorPart:
    """Tensor parallelism: `scheme` is a preset of one axis, a grid, or "free"."""

    size: int | None
    scheme: str
    text: str
    depth: int | None = None

    def ways(self, size: int, inner: int, node_size: int | None) -> Iterator[Way]:
        if self.scheme in GRIDS:
            yield self._grid(size)
            return
        entry: dict[str, Any] = {"size": size, "mode": "1d" if self.scheme in ONE_D else "free"}
        if ONE_D.get(self.scheme) is not None:
            entry["sequence_parallel"] = ONE_D[self.scheme]
        bound = None if self.scheme == "free" else self.scheme
        yield Way((Axis("tensor", size, bound),), entry)

    def _grid(self, size: int) -> Way:
        from autoplan.strategies.presets.grids import GRID_SCHEMES, grid_axes

        sizes = grid_axes(self.scheme, size, self.depth)
        axes = tuple(Axis(name, each, GRID_SCHEMES[name]) for name, each in sizes.items())
        entry: dict[str, Any] = {"size": size, "mode": self.scheme}
        if self.scheme == "2.5d":
            entry["depth"] = sizes.get("tensor_depth", 1)
        return Way(axes or (Axis("tensor", 1),), entry)


@dataclass(frozen=True)
class SequencePart:
    """The sequence split, in attention too: `scheme` is a preset, or "free"."""

    size: int | None
    scheme: str
    text: str

    def ways(self, size: int, inner: int, node_size: int | None) -> Iterator[Way]:
        bound = None if self.scheme == "free" else self.scheme
        yield Way((Axis("sequence", size, bound),), {"size": size, "mode": self.scheme})


@dataclass(frozen=True)
class ExpertPart:
    """The experts of mixtures split."""

    size: int | None
    text: str

    def ways(self, size: int, inner: int, node_size: int | None) -> Iterator[Way]:
        yield Way((Axis("expert", size, "expert"),), {"size": size})


# -- reading ------------------------------------------------------------------------------------


def read_data(value: Any, preset: str | None) -> DataPart:
    """`4`, `dict(size=4, mode="hsdp", shard=2)`, or None; a `preset` stands for mode or zero."""
    options = _options(value, "data", DATA_KEYS)
    size = _size(options, "data")
    mode, zero, shard = options.get("mode"), options.get("zero"), options.get("shard")
    if mode is not None:
        check_name(mode, DATA_MODES, "data mode")
    if zero is not None and (isinstance(zero, bool) or zero not in ZERO.values()):
        raise ConfigError(f"data zero is a stage of ZeRO, 1, 2 or 3, got {zero!r}.")
    if shard is not None:
        positive(shard, "the shard of data")
    if mode == "ddp" and zero is not None:
        raise ConfigError(
            f"data mode='ddp' keeps everything whole on every rank, and zero={zero} splits it; "
            "leave one of them out."
        )
    said = {"mode": mode, "zero": zero, "shard": shard}
    written = " ".join(f"{key}={each!r}" for key, each in said.items() if each is not None)
    default = "data parallelism, the default" if size is None else f"parallel data={size}"
    text = f"parallel data {written}" if written else default
    if preset is not None:
        stage = ZERO.get(preset)
        if stage is not None:
            fits = mode in (None, "data", "fsdp") and zero in (None, stage)
            zero = stage
        else:
            fits = mode in (None, preset) and (zero is None or preset == "hsdp")
            mode = preset
        if not fits:
            raise _contradiction(preset, text)
        text = f"preset={preset!r}"
    if shard is not None and mode not in (None, "hsdp"):
        raise ConfigError(
            f"data shard={shard} is a number of ranks that split what mode='hsdp' copies, and "
            f"mode={mode!r} has no such copies; leave shard out, or use mode='hsdp'."
        )
    if mode == "hsdp" or shard is not None:
        return DataPart(size, "hsdp", text, zero, shard)
    return DataPart(size, f"zero{zero}" if zero is not None else mode or "data", text)


def read_tensor(value: Any, preset: str | None) -> TensorPart:
    """`dict(size=4, mode="2.5d", depth=2)`; a `preset` stands for the mode."""
    options = _options(value, "tensor", TENSOR_KEYS)
    size = _size(options, "tensor")
    mode, depth, sequence = (options.get(key) for key in ("mode", "depth", "sequence_parallel"))
    if mode is not None:
        check_name(mode, TENSOR_MODES, "tensor mode")
    if sequence is not None and not isinstance(sequence, bool):
        raise ConfigError(f"tensor sequence_parallel is True or False, got {sequence!r}.")
    if depth is not None:
        positive(depth, "the depth of tensor")
    text = f"parallel tensor mode={mode!r}"
    text += f" sequence_parallel={sequence}" if sequence is not None else ""
    scheme = mode
    if preset is not None:
        base = "1d" if preset in ONE_D else preset
        split = ONE_D.get(preset)
        if mode not in (None, "free", base) or (
            None not in (split, sequence) and split != sequence
        ):
            raise _contradiction(preset, text)
        mode, scheme, text = base, preset, f"preset={preset!r}"
    if mode is None and size == 1:
        mode = scheme = "free"
    if mode is None:
        raise _no_mode("tensor", value, size, TENSOR_MODES)
    if depth is not None and mode != "2.5d":
        raise ConfigError(
            f"tensor mode={mode!r} has no depth, got depth={depth}; leave it out, or use "
            "mode='2.5d'."
        )
    if sequence is not None and mode != "1d":
        raise ConfigError(
            f"sequence_parallel={sequence} is a choice of tensor mode='1d', got mode={mode!r}; "
            "leave it out, or use mode='1d'."
        )
    if sequence is not None:
        scheme = "megatron-sp" if sequence else "megatron"
    return TensorPart(size, scheme or mode, text, depth)


def read_sequence(value: Any, preset: str | None) -> SequencePart:
    """`dict(size=4, mode="ring")`; a `preset` stands for the mode."""
    options = _options(value, "sequence", SEQUENCE_KEYS)
    size, mode = _size(options, "sequence"), options.get("mode")
    if mode is not None:
        check_name(mode, SEQUENCE_MODES, "sequence mode")
    text = f"parallel sequence mode={mode!r}"
    if preset is not None:
        if mode not in (None, "free", preset):
            raise _contradiction(preset, text)
        mode, text = preset, f"preset={preset!r}"
    if mode is None and size != 1:
        raise _no_mode("sequence", value, size, SEQUENCE_MODES)
    return SequencePart(size, mode or "free", text)


def read_expert(value: Any, preset: str | None) -> ExpertPart:
    """`4`, or `dict(size=4)`."""
    size = _size(_options(value, "expert", EXPERT_KEYS), "expert")
    return ExpertPart(size, "parallel expert" if preset is None else f"preset={preset!r}")


def divisors(number: int) -> list[int]:
    """All of them, from 1 on."""
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return list(dict.fromkeys([*small, *(number // each for each in reversed(small))]))


def _no_mode(role: str, value: Any, size: int | None, modes: tuple[str, ...]) -> ConfigError:
    shown = f"size={size}, " if size is not None else ""
    return ConfigError(
        f"{role}={value!r} says no mode; write {role}=dict({shown}mode={modes[0]!r}), or "
        f"mode='free' to leave it to the planner; the modes are {listed(modes)}."
    )


def _contradiction(preset: str, text: str) -> ConfigError:
    return ConfigError(f"preset={preset!r} and {text} say different things; leave one of them out.")


def _options(value: Any, role: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    """An entry as a dict, its keys known; a number is its size."""
    if not isinstance(value, Mapping):
        return {} if value is None else {"size": value}
    for key in value:
        check_key(key, keys, f"parallel[{role!r}]")
    return value


def _size(options: Mapping[str, Any], role: str) -> int | None:
    size = options.get("size")
    return None if size is None else positive(size, f"the size of {role}")
