"""The `parallel` argument: what the user fixes of the mesh, and what each axis is for.

Its `pipeline` entry is read in `autoplan.pipeline_choice`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autoplan.errors import ConfigError
from autoplan.mesh import Mesh

_KEYS = ("data", "tensor", "pipeline", "mesh")
_PIPELINE_KEYS = ("size", "schedule", "chunks", "stage_map", "stages")
_TENSOR_MODES = ("1d", "free")


@dataclass(frozen=True)
class MeshChoice:
    """A mesh, and the scheme (a name in `presets`) that an axis is bound to; others are free."""

    mesh: Mesh
    schemes: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    """Every axis as the user named it, those of size 1 too: hints may speak of them."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Bound axis -> what the user wrote that binds it; axes bound by one text are one demand."""

    def without_schemes(self, axes: Collection[str]) -> MeshChoice:
        """The same mesh with `axes` free."""
        schemes = {axis: name for axis, name in self.schemes.items() if axis not in axes}
        return replace(self, schemes=schemes)


def mesh_choices(
    parallel: Mapping[str, Any] | None, preset: str | None, devices: int
) -> tuple[MeshChoice, ...]:
    """The meshes that the planner may choose from.

    `parallel`: `dict(data=2, tensor=dict(size=2, mode="1d"))`; a data size left out is inferred.
    `dict(mesh=dict(outer=2, inner=4))` names free axes. None leaves the shape to the planner: one
    axis, or two. A `preset` binds the single axis, or the data axis beside a tensor one. Beside a
    `pipeline`, the meshes are those of one pipeline rank's devices.
    Raises ConfigError for unknown keys, a missing mode, or sizes whose product is not `devices`.
    """
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"devices must be a positive number, got {devices!r}.")
    if parallel is None:
        if preset is not None:
            schemes = {"devices": preset}
            written = {"devices": f"preset={preset!r}"}
            return (MeshChoice(Mesh.of(devices=devices), schemes, written=written),)
        return tuple(MeshChoice(mesh) for mesh in _free_meshes(devices))
    if not isinstance(parallel, Mapping):
        raise ConfigError(
            f"parallel is a dict such as dict(data=2, tensor=dict(size=4, mode='1d')), "
            f"got {parallel!r}."
        )
    for key in parallel:
        check_key(key, _KEYS, "parallel")
    if "mesh" in parallel:
        return (_named_mesh(parallel, preset, devices),)
    return (_roles(parallel, preset, devices),)


def _free_meshes(devices: int) -> list[Mesh]:
    """One axis, and every factorisation into two."""
    meshes = [Mesh.of(devices=devices)]
    for inner in range(2, math.isqrt(devices) + 1):
        if devices % inner == 0:
            meshes.append(Mesh.of(outer=devices // inner, inner=inner))
            if inner * inner != devices:
                meshes.append(Mesh.of(outer=inner, inner=devices // inner))
    return meshes


def _named_mesh(parallel: Mapping[str, Any], preset: str | None, devices: int) -> MeshChoice:
    sizes = parallel["mesh"]
    if not set(parallel) <= {"mesh", "pipeline"} or not isinstance(sizes, Mapping):
        raise ConfigError(
            "parallel=dict(mesh=...) names every axis itself, e.g. dict(mesh=dict(outer=2, "
            f"inner=4)), and goes with no other key but pipeline; got {dict(parallel)!r}."
        )
    sizes = {axis: positive(n, f"the size of mesh axis {axis!r}") for axis, n in sizes.items()}
    _check_product(sizes, pipeline_size(parallel), devices)
    mesh = Mesh.of(**sizes)
    bound = mesh.axes if preset else ()
    return MeshChoice(
        mesh,
        {axis: preset for axis in bound if preset},
        tuple(sizes),
        dict.fromkeys(bound, f"preset={preset!r}"),
    )


def _roles(parallel: Mapping[str, Any], preset: str | None, devices: int) -> MeshChoice:
    tensor, mode = _tensor(parallel.get("tensor"))
    pipeline = pipeline_size(parallel)
    data = _entry(parallel.get("data"), "data", ("size",))
    inferred = data is None
    if data is None:
        others = (tensor or 1) * pipeline
        if devices % others:
            raise ConfigError(
                f"{_factors(tensor or 1, pipeline)} does not divide {devices} devices; "
                f"use a divisor of {devices}, or {_next_multiple(devices, others)} devices."
            )
        data = devices // others
    sizes = {"data": data, "tensor": tensor or 1}
    _check_product(sizes, pipeline, devices)
    mesh = Mesh.of(**sizes)
    role = "data parallelism, the default" if inferred else f"parallel data={data}"
    split = f"preset={preset!r}" if preset else role
    written = {"data": split, "tensor": f"parallel tensor mode={mode!r}"}
    schemes = {"data": preset or "data", "tensor": mode}
    if preset in ("megatron", "megatron-sp"):
        schemes = {"data": "data", "tensor": preset} if "tensor" in mesh.axes else {"data": preset}
        written = {"data": role, "tensor": split} if "tensor" in mesh.axes else {"data": split}
    bound = {a: s for a, s in schemes.items() if a in mesh.axes and s != "free"}
    return MeshChoice(mesh, bound, tuple(sizes), {axis: written[axis] for axis in bound})


def pipeline_size(parallel: Mapping[str, Any]) -> int:
    """The number of pipeline ranks; 1 without a pipeline."""
    return _entry(parallel.get("pipeline"), "pipeline", _PIPELINE_KEYS) or 1


def _factors(tensor: int, pipeline: int) -> str:
    if tensor > 1 and pipeline > 1:
        return f"tensor x pipeline = {tensor * pipeline}"
    return f"pipeline size {pipeline}" if pipeline > 1 else f"tensor size {tensor}"


def _next_multiple(devices: int, size: int) -> int:
    return -(-devices // size) * size


def _check_product(axes: Mapping[str, int], pipeline: int, devices: int) -> None:
    sizes = {**axes, "pipeline": pipeline} if pipeline > 1 else axes
    product = math.prod(axes.values()) * pipeline
    if product != devices:
        text = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"{text} = {product} devices, but devices={devices}; "
            f"change a size, leave data out to have it inferred, or give devices={product}."
        )


def _tensor(value: Any) -> tuple[int | None, str]:
    if value is None:
        return None, "free"
    if isinstance(value, Mapping):
        for key in value:
            check_key(key, ("size", "mode"), "parallel['tensor']")
        size = positive(value.get("size"), "the size of tensor")
        mode = value.get("mode")
        if mode is None and size == 1:
            return size, "free"
        if mode is not None:
            if mode not in _TENSOR_MODES:
                raise ConfigError(
                    f"tensor mode {mode!r} is not known; use {_listed(_TENSOR_MODES)}."
                )
            return size, mode
    else:
        size = positive(value, "the size of tensor")
        if size == 1:
            return size, "free"
    raise ConfigError(
        f"tensor={value!r} says no mode; write tensor=dict(size={size}, mode='1d'), "
        "or mode='free' to leave it to the planner."
    )


def _entry(value: Any, name: str, keys: tuple[str, ...]) -> int | None:
    if isinstance(value, Mapping):
        for key in value:
            check_key(key, keys, f"parallel[{name!r}]")
        value = value.get("size")
    return None if value is None else positive(value, f"the size of {name}")


def positive(value: Any, name: str) -> int:
    """`value`, called `name`, if it is a positive whole number; else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive whole number, got {value!r}.")
    return value


def check_key(key: Any, known: tuple[str, ...], where: str) -> None:
    """Raise ConfigError, with the nearest one, for a key that `where` does not have."""
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{where} has no key {key!r}{meant}; the keys are {_listed(known)}.")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
