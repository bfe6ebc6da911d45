"""autoplan: plans how a PyTorch model runs on many devices, proves the plan, and runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from autoplan import module as _module
from autoplan import planning as _planning
from autoplan.config import Config, read_config, with_config
from autoplan.config.options import OPTIONS
from autoplan.cost_models import Cluster
from autoplan.discover import Discovered, discover_rule
from autoplan.errors import (
    AutoplanError,
    CaptureError,
    ConfigError,
    HintError,
    InfeasibleError,
    InputError,
    LayoutError,
    PlanFileError,
    RuleError,
    VerificationError,
)
from autoplan.hints import HintValue
from autoplan.hints.inside import hint
from autoplan.hints.text import Prefer
from autoplan.layouts import BP, B, Layout, P, S
from autoplan.mesh import Mesh
from autoplan.module import ParallelModule, StepResult
from autoplan.plan import Plan, load_plan
from autoplan.registry import register_rule
from autoplan.verify import Check

__version__ = "0.1.0"

__all__ = [
    # the two verbs
    "plan",
    "parallelize",
    # their options as a file
    "read_config",
    # pins inside forward, and wishes
    "hint",
    "Prefer",
    # what they return
    "Plan",
    "load_plan",
    "ParallelModule",
    "StepResult",
    "Check",
    # rules of one's own ops
    "register_rule",
    "discover_rule",
    "Discovered",
    # layouts and clusters
    "Layout",
    "S",
    "P",
    "B",
    "BP",
    "Mesh",
    "Cluster",
    # errors
    "AutoplanError",
    "CaptureError",
    "ConfigError",
    "HintError",
    "InfeasibleError",
    "InputError",
    "LayoutError",
    "PlanFileError",
    "RuleError",
    "VerificationError",
]


def plan(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    devices: int = 1,
    cluster: str | Path | Cluster | None = None,
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
    outputs: str = "loss",
    recompute: bool | str | Sequence[str] | None = None,
    config: Config | None = None,
) -> Plan:
    """Find the fastest layouts of `model` on `devices` devices, and prove them.

    args, kwargs: example arguments, the whole batch; only shapes and types matter, and the model
        may live on the meta device.
    cluster: hardware profile by name ("h100", "a100", "cpu", ...), TOML path, or Cluster; by
        default what this machine has.
    parallel: what axes are for, `dict(data=2, tensor=dict(size=2, mode="1d"), pipeline="auto")`, or
        free ones, `dict(mesh=dict(x=2, y=4))`; sizes left out are inferred or searched. None leaves
        all to the planner: pipelines too, unless the step is one microbatch.
    preset: a known scheme on all devices, as in `autoplan.strategies.presets`: "ddp", "fsdp",
        "hsdp", "megatron", "2d", "ring", ...
    hints: pins by glob over parameter, module, argument and output paths:
        `{"transformer.h.*.mlp.c_fc.weight": "S(1)", "lm_head": {"tensor": "S(2)"}}`; "!S" never
        splits, "use: B/P" is how a step reads a parameter, "S(1) ~ 0.5 ms" is a wish with a price.
    memory: bytes per device, as a number or "40GB"; by default the profile's. The predicted peak
        of every device stays within it.
    time_limit_s, gap: where the search may stop: after so many seconds, or so near, relatively, to
        the optimum. The certificate says what was reached.
    optimizer: "adamw", "adam", "sgd", "momentum", or "none": what its state occupies.
    microbatches: parts that `train_step` cuts the batch into; "auto" leaves their number open.
    outputs: "loss" prices a step that returns the scalar loss; "whole" also every other output.
    recompute: blocks whose values backward computes again instead of keeping them: "auto", the
        default, where memory asks for it; True, False, or patterns of paths, `["layers.*"]`.
    config: options that are left out here: a .toml or .yaml file, that and overrides as
        `["run.toml", "memory=40GB"]`, or another plan's `config`. A keyword with its default value
        counts as left out.

    Raises CaptureError, ConfigError, HintError, or InfeasibleError; each says what to change.
    """
    given = _options(
        {
            "devices": devices, "cluster": cluster, "parallel": parallel, "preset": preset,
            "hints": hints, "memory": memory, "training": training, "optimizer": optimizer,
            "microbatches": microbatches, "time_limit_s": time_limit_s, "gap": gap,
            "local_inputs": local_inputs, "outputs": outputs, "recompute": recompute,
        },
        _DEFAULTS, config,
    )  # fmt: skip
    given.pop("seed", None)
    return _planning.plan(model, args, kwargs, **given)


def parallelize(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    devices: int | None = None,
    cluster: str | Path | Cluster | None = None,
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
    outputs: str = "loss",
    recompute: bool | str | Sequence[str] | None = None,
    plan: Plan | str | Path | None = None,
    seed: int = 0,
    config: Config | None = None,
) -> ParallelModule:
    """A module that computes what `model` computes, on `devices` devices, by a plan.

    The arguments are those of `autoplan.plan`. With example arguments it plans at once, without
    them at the first call. Under torchrun (or in an initialised process group) every process is
    one device; otherwise all devices are simulated in this process. `plan` is one made before,
    or its file. `local_inputs`: each rank passes its own part of the batch. `seed` is dropout's.
    """
    given = _options(
        {
            "devices": devices, "cluster": cluster, "parallel": parallel, "preset": preset,
            "hints": hints, "memory": memory, "training": training, "optimizer": optimizer,
            "microbatches": microbatches, "time_limit_s": time_limit_s, "gap": gap,
            "local_inputs": local_inputs, "outputs": outputs, "recompute": recompute, "seed": seed,
        },
        {**_DEFAULTS, "devices": None, "seed": 0}, config,
    )  # fmt: skip
    return _module.parallelize(model, args, kwargs, plan=plan, **given)


_DEFAULTS = {
    name: each.default for name, each in signature(plan).parameters.items() if name in OPTIONS
}


def _options(
    given: Mapping[str, Any], defaults: Mapping[str, Any], config: Config | None
) -> dict[str, Any]:
    """The options of both verbs, those left out as `config` has them."""
    options = with_config(config, given, defaults)
    outputs = options.pop("outputs")
    if outputs not in ("loss", "whole"):
        raise ConfigError(f"outputs must be 'loss' or 'whole', got {outputs!r}.")
    return {**options, "whole_outputs": outputs == "whole"}
