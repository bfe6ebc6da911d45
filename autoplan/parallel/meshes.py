"""Mesh choices: every mesh that `parallel`, a preset and the number of devices leave."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.parallel.checks import check_key, meant, positive
from autoplan.parallel.choice import MeshChoice
from autoplan.parallel.parts import (
    DATA_MODES,
    GRIDS,
    ONE_D,
    SEQUENCE_PRESETS,
    ZERO,
    DataPart,
    Part,
    Way,
    divisors,
    read_data,
    read_expert,
    read_sequence,
    read_tensor,
)

KEYS = ("data", "tensor", "sequence", "expert", "pipeline", "mesh")
PIPELINE_KEYS = ("size", "schedule", "chunks", "stage_map", "stages")
"""Keys of the entry `pipeline`, which `autoplan.pipeline_choice` reads."""
AXIS_KEYS = ("size", "preset")
"""Keys of an axis of the entry `mesh`."""

WHOLE_PRESETS = ("hsdp", *GRIDS, *SEQUENCE_PRESETS, "expert")
"""Presets that make axes of their own; others bind one axis that is there."""


def mesh_choices(
    parallel: Mapping[str, Any] | None,
    preset: str | None,
    devices: int,
    node_size: int | None = None,
) -> tuple[MeshChoice, ...]:
    """The meshes that the planner may choose from, those with the fewest axes first.

    `parallel`: `dict(data=2, tensor=dict(size=2, mode="1d"))`; a data size left out is inferred,
    and for every other entry without a size there is a mesh for each size that fits. Axes lie from
    the outermost on as data, expert, sequence, tensor: the last has the fastest links.
    `dict(mesh=dict(outer=2, inner=4))` names the axes itself. None leaves the shape to the planner:
    one axis, or two. A `preset` is the mode of its entry; one of a single axis binds the data axis,
    or all devices. `node_size`: the shard of hsdp where none is given, if it fits. Beside a
    `pipeline`, the meshes are those of one pipeline rank's devices.
    Raises ConfigError for unknown keys, a missing mode, or sizes whose product is not `devices`.
    """
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"devices must be a positive number, got {devices!r}.")
    if preset is not None:
        _check_preset(preset)
    if parallel is None:
        if preset is None:
            return tuple(map(MeshChoice, _free_meshes(devices)))
        if preset not in WHOLE_PRESETS:
            return (_bound(Mesh.of(devices=devices), ("devices",), preset),)
        parallel = {}
    if not isinstance(parallel, Mapping):
        raise ConfigError(
            f"parallel is a dict such as dict(data=2, tensor=dict(size=4, mode='1d')), "
            f"got {parallel!r}."
        )
    for key in parallel:
        check_key(key, KEYS, "parallel")
    if "mesh" in parallel:
        return (_named_mesh(parallel, preset, devices),)
    found = _of_parts(parallel, preset, devices, node_size)
    return tuple(sorted(found, key=lambda choice: choice.mesh.ndim))


def pipeline_size(parallel: Mapping[str, Any]) -> int:
    """The number of pipeline ranks; 1 without a pipeline."""
    value = parallel.get("pipeline")
    if isinstance(value, Mapping):
        for key in value:
            check_key(key, PIPELINE_KEYS, "parallel['pipeline']")
        value = value.get("size")
    return 1 if value is None else positive(value, "the size of pipeline")


# -- meshes without parts -------------------------------------------------------------------------


def _free_meshes(devices: int) -> list[Mesh]:
    """One axis, and every factorisation into two."""
    meshes = [Mesh.of(devices=devices)]
    for inner in range(2, math.isqrt(devices) + 1):
        if devices % inner == 0:
            meshes.append(Mesh.of(outer=devices // inner, inner=inner))
            if inner * inner != devices:
                meshes.append(Mesh.of(outer=inner, inner=devices // inner))
    return meshes


def _bound(mesh: Mesh, axes: tuple[str, ...], preset: str) -> MeshChoice:
    """Every axis bound to one preset."""
    text = f"preset={preset!r}"
    return MeshChoice(mesh, dict.fromkeys(axes, preset), written=dict.fromkeys(axes, text))


def _named_mesh(parallel: Mapping[str, Any], preset: str | None, devices: int) -> MeshChoice:
    axes = parallel["mesh"]
    if not set(parallel) <= {"mesh", "pipeline"} or not isinstance(axes, Mapping):
        raise ConfigError(
            "parallel=dict(mesh=...) names every axis itself, e.g. dict(mesh=dict(outer=2, "
            f"inner=4)), and goes with no other key but pipeline; got {dict(parallel)!r}."
        )
    if preset in ("hsdp", *GRIDS):
        raise ConfigError(
            f"preset={preset!r} makes axes of its own, and mesh={dict(axes)!r} names others; "
            "leave mesh out."
        )
    read = {axis: _named_axis(axis, value, preset) for axis, value in axes.items()}
    sizes = {axis: size for axis, (size, _) in read.items()}
    _check_product(sizes, pipeline_size(parallel), devices)
    mesh = Mesh.of(**sizes)
    schemes = {axis: read[axis][1] for axis in mesh.axes}
    bound = {axis: scheme for axis, scheme in schemes.items() if scheme is not None}
    own = {axis: f"parallel mesh {axis}={axes[axis]!r}" for axis in bound}
    written = own if preset is None else dict.fromkeys(bound, f"preset={preset!r}")
    entries = {
        axis: size if read[axis][1] is None else {"size": size, "preset": read[axis][1]}
        for axis, size in sizes.items()
    }
    return MeshChoice(mesh, bound, tuple(sizes), written, {"mesh": entries})


def _named_axis(axis: str, value: Any, preset: str | None) -> tuple[int, str | None]:
    """The size and the preset of an axis, `4` or `dict(size=4, preset="fsdp")`."""
    options = value if isinstance(value, Mapping) else {"size": value}
    for key in options:
        check_key(key, AXIS_KEYS, f"parallel['mesh'][{axis!r}]")
    own = options.get("preset")
    if own is not None and preset not in (None, own):
        raise ConfigError(
            f"preset={preset!r} and mesh {axis}={dict(options)!r} say different things; leave one "
            "of them out."
        )
    if own is not None:
        _check_preset(own)
    return positive(options.get("size"), f"the size of mesh axis {axis!r}"), own or preset


def _check_preset(preset: Any) -> None:
    """Raise ConfigError, with the nearest one, for a name of no preset."""
    from autoplan.strategies.presets import PRESETS

    parts = {scheme for grid in GRIDS for scheme in PRESETS if scheme.startswith(f"{grid}-")}
    known = tuple(dict.fromkeys((*(name for name in PRESETS if name not in parts), *WHOLE_PRESETS)))
    if not isinstance(preset, str) or (preset not in PRESETS and preset not in known):
        raise ConfigError(
            f"no preset is called {preset!r}{meant(preset, known)}; there are {', '.join(known)}."
        )


# -- meshes of parts ------------------------------------------------------------------------------


def _of_parts(
    parallel: Mapping[str, Any], preset: str | None, devices: int, node_size: int | None
) -> Iterator[MeshChoice]:
    """A choice for every way to fill in what was left out, the data size last."""
    data, others = _parts(parallel, preset)
    pipeline = pipeline_size(parallel)
    found, failure = False, None
    for sizes in _sizes(data, others, pipeline, devices):
        try:
            choices = list(_ways(data, others, sizes, node_size))
        except ConfigError as error:
            failure = error
            continue
        found = True
        yield from choices
    if found or failure is None:
        return
    without_size = [part.text for part in others.values() if part.size is None]
    if not without_size:
        raise failure
    where = f"{' and '.join(without_size)} on {devices // pipeline} devices"
    raise ConfigError(f"{where}: {failure}") from failure


def _parts(parallel: Mapping[str, Any], preset: str | None) -> tuple[DataPart, Mapping[str, Part]]:
    """The data part, and the others from the outermost on; the preset is read into its own."""
    given = {key: value for key, value in parallel.items() if value is not None}
    tensor = preset if preset in GRIDS or (preset in ONE_D and _has_tensor(given)) else None
    sequence = preset if preset in SEQUENCE_PRESETS else None
    expert = preset if preset == "expert" else None
    own = tensor or sequence or expert
    others: dict[str, Part] = {}
    if "expert" in given or expert:
        others["expert"] = read_expert(given.get("expert"), expert)
    if "sequence" in given or sequence:
        others["sequence"] = read_sequence(given.get("sequence"), sequence)
    if "tensor" in given or tensor:
        others["tensor"] = read_tensor(given.get("tensor"), tensor)
    # A preset that makes axes of its own has all devices, unless entries say otherwise.
    alone = own is not None and not {"expert", "sequence", "tensor"} & set(given)
    value = given.get("data", 1 if alone else None)
    return read_data(value, None if own else preset), others


def _has_tensor(given: Mapping[str, Any]) -> bool:
    """Whether there is a tensor axis, of more than one rank."""
    value = given.get("tensor")
    size = value.get("size") if isinstance(value, Mapping) else value
    return value is not None and (size is None or size != 1)


def _sizes(
    data: DataPart, others: Mapping[str, Part], pipeline: int, devices: int
) -> Iterator[dict[str, int]]:
    """The size of every part, data among them; ConfigError where none multiply to `devices`."""
    parts: dict[str, Part] = {"data": data, **others}
    known = {name: part.size for name, part in parts.items() if part.size is not None}
    free = [name for name in others if name not in known]
    if not free and data.size is not None:
        _check_product({**known, "tensor": known.get("tensor", 1)}, pipeline, devices)
    product = math.prod(known.values()) * pipeline
    room, rest = divmod(devices, product)
    if rest:
        raise ConfigError(
            f"{_factors(known, pipeline)} does not divide {devices} devices; use a divisor of "
            f"{devices}, or {-(-devices // product) * product} devices."
        )
    found = False
    for drawn in itertools.product(*([n for n in divisors(room) if n > 1] for _ in free)):
        used = math.prod(drawn)
        if room % used == 0 and (data.size is None or used == room or not free):
            found = True
            inferred = {"data": 1 if data.size is not None else room // used}
            yield {**inferred, **known, **dict(zip(free, drawn, strict=True))}
    if not found:
        raise ConfigError(
            f"{' and '.join(others[name].text for name in free)} says no size, and of {devices} "
            f"devices {room} {'is' if room == 1 else 'are'} left for it, which no size of 2 or "
            "more fits; give other sizes fewer devices, or leave it out."
        )


def _ways(
    data: DataPart, others: Mapping[str, Part], sizes: Mapping[str, int], node_size: int | None
) -> Iterator[MeshChoice]:
    """The choices of parts of these sizes; each part may use its devices in several ways."""
    parts: dict[str, Part] = {"data": data, **others}
    inner = math.prod(sizes.values())
    ways: list[list[Way]] = []
    for name, part in parts.items():
        inner //= sizes[name]
        ways.append(list(part.ways(sizes[name], inner, node_size)))
    for chosen in itertools.product(*ways):
        yield _choice(dict(zip(parts, chosen, strict=True)), parts)


def _choice(ways: Mapping[str, Way], parts: Mapping[str, Part]) -> MeshChoice:
    axes = {axis.name: axis for way in ways.values() for axis in way.axes}
    mesh = Mesh.of(**{name: axis.size for name, axis in axes.items()})
    text = {axis.name: parts[part].text for part, way in ways.items() for axis in way.axes}
    schemes = {name: axes[name].scheme for name in mesh.axes}
    bound = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    resolved = {part: way.entry for part, way in ways.items()}
    if ways["data"].axes[0].scheme not in (*DATA_MODES, *ZERO):  # a preset of any axis
        resolved = {}
    named = tuple(axes) if "tensor" in ways else (*axes, "tensor")
    return MeshChoice(mesh, bound, named, {axis: text[axis] for axis in bound}, resolved)


# -- what is said of sizes ------------------------------------------------------------------------


def _factors(sizes: Mapping[str, int], pipeline: int) -> str:
    """`tensor x pipeline = 6`, `tensor size 3`."""
    given = {**sizes, "pipeline": pipeline}
    factors = {name: size for name, size in given.items() if size > 1}
    if len(factors) == 1:
        ((name, size),) = factors.items()
        return f"{name} size {size}"
    return f"{' x '.join(factors)} = {math.prod(factors.values())}"


def _check_product(axes: Mapping[str, int], pipeline: int, devices: int) -> None:
    sizes = {**axes, "pipeline": pipeline} if pipeline > 1 else axes
    product = math.prod(axes.values()) * pipeline
    if product != devices:
        text = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"{text} = {product} devices, but devices={devices}; "
            f"change a size, leave data out to have it inferred, or give devices={product}."
        )
