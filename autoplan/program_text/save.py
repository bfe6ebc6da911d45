"""Save: the files of a plan's programs, and beside them weights, constants and a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.errors import ConfigError, PlanFileError
from autoplan.launch import distributed
from autoplan.placed import local_part
from autoplan.plan import Plan
from autoplan.program_text.files import files_of
from autoplan.program_text.programs import programs_of
from autoplan.runtime.batches import Example
from autoplan.runtime.program import Program, TensorSpec
from autoplan.runtime.simulation import shard

if TYPE_CHECKING:
    from autoplan.module import ParallelModule


def save_program(plan: Plan, folder: str | Path, seed: int = 0) -> tuple[Path, ...]:
    """Write one file for every distinct program of a rank, run.py, and the model's constants.

    Returns what was written. Raises ConfigError for a plan that was read from a file and not loaded
    on its model, or of a pipeline without a loss; PlanFileError where `folder` cannot be written.
    """
    stages = programs_of(plan)
    if plan.pipeline is not None and stages[-1].loss is None:
        raise ConfigError(
            "a saved pipeline runs steps, and this model returns no scalar loss; plan with labels "
            "among the arguments, or without a pipeline."
        )
    constants = {name: value for stage in stages for name, value in stage.constants.items()}
    into = Path(folder)
    written = []
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name, text in files_of(plan, stages, seed).items():
            (into / name).write_text(text, encoding="utf-8", newline="\n")
            written.append(into / name)
        torch.save(constants, into / "constants.pt")
    except OSError as error:
        raise PlanFileError(
            f"cannot write programs to {str(folder)!r}: {error.strerror}."
        ) from error
    return (*written, into / "constants.pt")


def save_module(
    module: ParallelModule,
    folder: str | Path,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[Path, ...]:
    """`save_program` of a module's plan, with the shards of every rank, and a batch where given.

    On real ranks all call it; each writes its own shards. Returns what this rank wrote.
    """
    alone = not distributed() or dist.get_rank() == 0
    written = save_program(module.plan, folder, module._seed) if alone else ()
    into = Path(folder)
    try:
        into.mkdir(parents=True, exist_ok=True)
        for rank, values in _shards(module):
            torch.save(values, into / f"rank_{rank}.pt")
            written += (into / f"rank_{rank}.pt",)
        if alone and (args is not None or kwargs is not None):
            torch.save(_batch(module, args, kwargs), into / "batch.pt")
            written += (into / "batch.pt",)
    except OSError as error:
        raise PlanFileError(
            f"cannot write weights to {str(folder)!r}: {error.strerror}."
        ) from error
    if distributed():
        dist.barrier()
    return written


def _shards(module: ParallelModule) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """What each rank that is present here holds of parameters and buffers, by path."""
    held = module._tensors()
    stages = module._first.here
    for pipeline_rank in dict.fromkeys(stage.rank for stage in stages):
        mine = [stage for stage in stages if stage.rank == pipeline_rank]
        for number, at in enumerate(module._executors[pipeline_rank].ranks):
            values = {}
            for program in (stage.programs[number] for stage in mine):
                for each in (*program.parameters, *program.state, *program.updates):
                    if each.name in held:
                        values[each.name] = _part(held[each.name], each, program, at)
            yield pipeline_rank * mine[0].programs[0].mesh.num_devices + at, values


def _part(held: Tensor, each: TensorSpec, program: Program, rank: int) -> Tensor:
    """A rank's own part, in memory of its own."""
    local = local_part(held)
    part = local if isinstance(held, DTensor) else shard(local, each.layout, program.mesh, rank)
    return part.detach().cpu().contiguous().clone()


def _batch(
    module: ParallelModule, args: tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None
) -> list[list[Tensor | None]]:
    """The flat arguments of every microbatch, whole; what is no tensor is in the program."""
    if module.plan.local_inputs:
        raise ConfigError(
            "save_program writes the whole batch, and with local_inputs=True no rank has it; save "
            "the program without arguments, and torch.save the microbatches as batch.pt."
        )
    example: Example = (() if args is None else args, dict(kwargs or {}))
    parts = module._cut(example, module.plan.microbatches)
    return [
        [
            leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else None
            for leaf in pytree.tree_leaves(part)
        ]
        for part in parts
    ]
