"""The request: every argument of `plan` and `parallelize` but the model, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autoplan.cost_models import Cluster, Roofline, load_cluster
from autoplan.errors import ConfigError, HintTextError
from autoplan.hints import Hint, HintValue
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice, mesh_choices
from autoplan.parallel.parts import divisors
from autoplan.pipeline_choice import PipelineChoice, pipeline_choice
from autoplan.pricing import Pricer, Setting
from autoplan.space.shapes import Space


@dataclass(frozen=True)
class Request:
    """Everything but the model that a plan depends on."""

    devices: int
    cluster: Cluster
    meshes: tuple[MeshChoice, ...]
    hints: Mapping[str, HintValue]
    memory_bytes: int
    setting: Setting
    time_limit_s: float = 60.0
    gap: float = 0.0
    local_inputs: bool = False
    whole_outputs: bool = False
    recompute: str | tuple[str, ...] = "auto"
    """"auto", "all", "none", or patterns of the paths of blocks that are recomputed."""
    held: tuple[Hint, ...] = ()
    """Layouts of parameters that exist already, when another form of arguments is planned."""
    pipeline: PipelineChoice | None = None
    """Then `meshes` are those of one pipeline rank's devices."""
    space: Space | None = None
    """What is left open beyond the meshes; None where nothing is."""

    def pricer(self, mesh: Mesh) -> Pricer:
        """Prices of the cluster on one mesh."""
        return Pricer(mesh, Roofline(self.cluster, mesh), self.setting)

    @property
    def num_stages(self) -> int:
        """Pipeline stages; 1 without a pipeline."""
        return 1 if self.pipeline is None else self.pipeline.num_stages


def make_request(
    devices: int,
    cluster: str | Cluster | None = None,
    parallel: Mapping[str, Any] | None = None,
    preset: str | None = None,
    hints: Mapping[str, HintValue] | None = None,
    memory: int | float | str | None = None,
    training: bool = True,
    optimizer: str = "adamw",
    microbatches: int | str = 1,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    local_inputs: bool = False,
    whole_outputs: bool = False,
    recompute: bool | str | Sequence[str] | None = None,
) -> Request:
    """Check the arguments of `plan` and `parallelize`; ConfigError names what is wrong."""
    count = _read_microbatches(microbatches)
    if not isinstance(training, bool):
        raise ConfigError(f"training must be True or False, got {training!r}.")
    if (
        isinstance(time_limit_s, bool)
        or not isinstance(time_limit_s, (int, float))
        or not time_limit_s > 0
    ):
        raise ConfigError(
            f"time_limit_s must be a positive number of seconds, got {time_limit_s!r}."
        )
    if isinstance(gap, bool) or not isinstance(gap, (int, float)) or not 0 <= gap < 1:
        raise ConfigError(
            f"gap is how far from the optimum a plan may be, from 0 to below 1, got {gap!r}."
        )
    if hints is not None and not isinstance(hints, Mapping):
        raise HintTextError(
            "hints is a dict of paths to layouts, such as {'lm_head.weight': 'S(0)'}, got "
            f"{hints!r}."
        )
    if not isinstance(optimizer, str):
        raise ConfigError(f"optimizer is a name such as 'adamw' or 'none', got {optimizer!r}.")
    sizes = _pipeline_sizes(parallel, preset, _checked(devices), count)
    loaded = load_cluster(cluster, devices, default=_local_profile())
    meshes: tuple[MeshChoice, ...] = ()
    pipeline = None
    if sizes is None or parallel is None:
        meshes = mesh_choices(parallel, preset, devices, loaded.node_size)
        pipeline = pipeline_choice(parallel, preset, devices, count or 1, loaded.node_size)
    if pipeline is not None and local_inputs:
        raise ConfigError(_LOCAL_AND_PIPELINE)
    limit = loaded.memory_bytes if memory is None else read_bytes(memory)
    if local_inputs and sizes is not None:
        if parallel is not None:
            raise ConfigError(_LOCAL_AND_PIPELINE)
        sizes = None
    space = None
    if sizes is not None or count is None or (parallel is None and preset is None):
        own = (1 if pipeline is None else pipeline.size,)
        names = _names_schedule(parallel)
        space = Space(devices, loaded.node_size, parallel, preset, sizes or own, count, names)
        space.check()
    return Request(
        devices,
        loaded,
        meshes,
        {} if hints is None else hints,
        int(limit),
        Setting(training, optimizer, count or 1, loaded.profile.device_type),
        time_limit_s,
        gap,
        local_inputs,
        whole_outputs,
        recompute=read_recompute(recompute, training),
        pipeline=pipeline,
        space=space,
    )


def _checked(devices: int) -> int:
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"devices must be a positive number, got {devices!r}.")
    return devices


_LOCAL_AND_PIPELINE = (
    "local_inputs=True with a pipeline: ranks of later stages have no part of the batch of their "
    "own; pass the whole batch on every rank, each takes what it needs."
)


def _read_microbatches(microbatches: int | str) -> int | None:
    """Their number; None for "auto"."""
    if microbatches == "auto":
        return None
    if isinstance(microbatches, bool) or not isinstance(microbatches, int) or microbatches < 1:
        raise ConfigError(
            f"microbatches must be a positive whole number, got {microbatches!r}; 'auto' leaves "
            "their number to the planner."
        )
    return microbatches


def _is_open(pipeline: Mapping[str, Any]) -> bool:
    """Whether something is said of a pipeline, but not its size."""
    said = any(each is not None for each in pipeline.values())
    return said and pipeline.get("size", "auto") in (None, "auto")


def _names_schedule(parallel: Mapping[str, Any] | None) -> bool:
    """Whether the user fixes how a pipeline is run or cut."""
    given = parallel.get("pipeline") if isinstance(parallel, Mapping) else None
    keys = ("schedule", "chunks", "stage_map", "stages")
    return isinstance(given, Mapping) and any(given.get(key) is not None for key in keys)


def _pipeline_sizes(
    parallel: Mapping[str, Any] | None, preset: str | None, devices: int, count: int | None
) -> tuple[int, ...] | None:
    """The sizes in question of a pipeline that is left open; None where it is given or left out.

    Nothing but devices: any size, unless all is one microbatch, which a pipeline runs stage after
    stage: copies do that without sending. A pipeline without a size: any from 2 on.
    """
    if parallel is None and preset is None:
        return None if count == 1 else tuple(divisors(devices))
    given = parallel.get("pipeline") if isinstance(parallel, Mapping) else None
    if given == "auto":
        return tuple(divisors(devices))
    if isinstance(given, Mapping) and _is_open(given):
        fixed = [key for key in ("stage_map", "stages") if given.get(key) is not None]
        if fixed:
            return None  # refused where the pipeline is read: these need a size
        return tuple(divisors(devices)[1:])
    return None


def read_recompute(
    recompute: bool | str | Sequence[str] | None, training: bool
) -> str | tuple[str, ...]:
    """ "auto", "all", "none", or patterns; ConfigError for anything else."""
    if recompute is None or (isinstance(recompute, str) and recompute == "auto"):
        return "auto"
    if recompute is False or (isinstance(recompute, str) and recompute == "none"):
        return "none"
    if not training:
        raise ConfigError(
            f"recompute={recompute!r} with training=False: there is no backward that could compute "
            "anything again; leave recompute out."
        )
    if recompute is True or (isinstance(recompute, str) and recompute == "all"):
        return "all"
    patterns = [] if isinstance(recompute, str) else recompute
    if not isinstance(patterns, (list, tuple)) or not patterns:
        raise ConfigError(
            "recompute is 'auto', 'all', 'none', or a list of paths of blocks such as ['layers.0', "
            f"'layers.*'], got {recompute!r}."
        )
    for each in patterns:
        if not isinstance(each, str):
            raise ConfigError(
                f"recompute: a block is named by its path, a text such as 'layers.0', got {each!r}."
            )
    return tuple(patterns)


def _local_profile() -> str:
    """The profile of this machine's device: by CUDA name where one is known, else the CPU's."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name().lower()
        for known in ("h200", "h100", "b200", "a100", "v100", "mi300x"):
            if known in name:
                return known
        return "a100"
    return "cpu"


_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
}


def read_bytes(memory: int | float | str) -> int:
    """Bytes from a number or a text such as "16GB", "80 GiB"."""
    amount = -1.0
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", memory.lower())
        if match and match.group(2) in _UNITS:
            amount = float(match.group(1)) * _UNITS[match.group(2)]
    elif isinstance(memory, (int, float)) and not isinstance(memory, bool):
        amount = float(memory)
    if not 1 <= amount < math.inf:
        raise ConfigError(f"memory is bytes per device, as a number or '16GB', got {memory!r}.")
    return int(amount)
