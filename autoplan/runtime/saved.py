"""What programs saved as Python files call: the rank that runs one, its weights, and its batch.

A saved file imports torch and this module; neither needs the planner, the model, or a plan. Beside
the files lie `rank_N.pt`, the shards of rank N (or `weights.pt`, a whole state dict, of which each
rank takes its own), `constants.pt`, and `batch.pt`, the flat arguments of every microbatch.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import init_device_mesh

from autoplan.errors import InputError
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.pipelining.schedules import read_schedule
from autoplan.runtime.communicator import DistributedCommunicator
from autoplan.runtime.executor import DistributedExecutor
from autoplan.runtime.leaves import backward, leaf_of
from autoplan.runtime.links import share
from autoplan.runtime.pipeline import pipeline_place
from autoplan.runtime.program import OutputSpec, Program, TensorSpec
from autoplan.runtime.recompute import Recomputed
from autoplan.runtime.regather import keeping_shards
from autoplan.runtime.relay import PeerRelay
from autoplan.runtime.simulation import shard
from autoplan.runtime.stage_step import StageStep

__all__ = [
    "Pipeline",
    "Rank",
    "keeping_shards",
    "leaf_of",
    "recomputed",
    "spec",
    "stage",
    "start",
]


def spec(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    trained: bool = False,
    reaches_loss: bool = True,
) -> TensorSpec:
    """A tensor by its logical shape, and how it lies."""
    return TensorSpec(name, shape, dtype, Layout.parse(layout), trained, reaches_loss)


def recomputed(part: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a body that keeps nothing for backward, which runs it again."""
    module = Recomputed(part)  # type: ignore[arg-type]

    @functools.wraps(part)
    def run(*values: Any) -> Any:
        return module(*values)

    return run


class Rank:
    """The rank that runs a saved program: its communicator, shards, and part of the batch."""

    def __init__(
        self,
        mesh: Mapping[str, int],
        ranks: Sequence[int],
        file: str,
        seed: int = 0,
        pipeline: Sequence[Mapping[str, int]] = (),
    ) -> None:
        """Join the process group that torchrun or `start` prepared.

        mesh: axes and sizes, of this pipeline rank. ranks: those whose program it is. file: of the
        program, beside which everything is read and written. pipeline: every pipeline rank's mesh.
        Raises InputError where another rank runs it, or another number of ranks was started.
        """
        self.mesh = Mesh(tuple(mesh), tuple(mesh.values()))
        self.folder = Path(file).parent
        world = self.mesh.num_devices * max(1, len(pipeline))
        self.number = int(os.environ.get("RANK", "0"))
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != world:
            raise InputError(
                f"{Path(file).name} is a program for {world} ranks, and {started} were started; "
                f"run `torchrun --nproc-per-node {world} run.py`, or `python run.py`."
            )
        if self.number not in ranks:
            raise InputError(
                f"{Path(file).name} is the program of ranks {list(ranks)}, and rank {self.number} "
                "runs it; start run.py, which gives every rank its own."
            )
        self.device = torch.device("cpu")
        groups: dict[str, Any] = {}
        self._device_mesh: Any = None
        if world > 1:
            self._join()
            self._device_mesh = self._made(pipeline)
            groups = {axis: self._device_mesh.get_group(axis) for axis in self.mesh.axes}
        self.coordinates = self.mesh.coordinates(self.number % self.mesh.num_devices)
        self.comm = DistributedCommunicator(self.mesh, self.coordinates, groups, seed)
        self.comm.device = self.device
        self._seed = seed

    def _join(self) -> None:
        if not dist.is_initialized():
            cuda = torch.cuda.is_available()
            dist.init_process_group("nccl" if cuda else "gloo")
        if "nccl" in dist.get_backend():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)

    def _made(self, pipeline: Sequence[Mapping[str, int]]) -> Any:
        """The device mesh of this rank; every rank takes part in making every one, in one order."""
        if not pipeline:
            sizes, names = self.mesh.sizes, self.mesh.axes
            return init_device_mesh(self.device.type, sizes, mesh_dim_names=names)
        made = {}
        for axes in dict.fromkeys(tuple(each.items()) for each in pipeline):
            names, sizes = tuple(n for n, _ in axes) or ("devices",), tuple(s for _, s in axes)
            outer = next(name for name in ("pipeline", "pipeline_rank") if name not in names)
            shape = (len(pipeline), *(sizes or (1,)))
            whole = init_device_mesh(self.device.type, shape, mesh_dim_names=(outer, *names))
            made[axes] = whole[names if len(names) > 1 else names[0]]
        return made[tuple(zip(self.mesh.axes, self.mesh.sizes, strict=True))]

    def executor(self) -> DistributedExecutor:
        """Runs the parts of stages on this rank."""
        return DistributedExecutor(self.mesh, self.device, self._seed, self._device_mesh)

    # -- values ---------------------------------------------------------------------------------

    @functools.cached_property
    def _shards(self) -> dict[str, Tensor]:
        return self._read(f"rank_{self.number}.pt")

    @functools.cached_property
    def _whole(self) -> dict[str, Tensor]:
        return {**self._read("weights.pt"), **self._read("constants.pt")}

    def _read(self, name: str) -> dict[str, Tensor]:
        path = self.folder / name
        found: dict[str, Tensor] = {}
        if path.exists():
            found = torch.load(path, map_location=self.device)
        return found

    def value(self, each: TensorSpec) -> Tensor:
        """This rank's part of a parameter, buffer or constant; InputError where there is none."""
        found = self._shards.get(each.name)
        if found is None:
            if each.name not in self._whole:
                raise InputError(
                    f"no value of {each.name!r}: neither rank_{self.number}.pt nor weights.pt has "
                    "it; save the program from the module, or save model.state_dict() as "
                    "weights.pt beside the program."
                )
            found = self._part(self._whole[each.name], each)
        return found.contiguous().clone().requires_grad_(each.requires_grad)

    def _part(self, whole: Tensor, each: TensorSpec) -> Tensor:
        return shard(whole, each.layout, self.mesh, self.number % self.mesh.num_devices)

    def batches(self, inputs: Sequence[tuple[int, TensorSpec]], count: int) -> list[list[Tensor]]:
        """This rank's part of the arguments, by flat position, of every microbatch.

        InputError where `batch.pt` is not there, or has another number of microbatches.
        """
        path = self.folder / "batch.pt"
        if not path.exists():
            raise InputError(
                f"{path.name} is missing beside {self.folder.name}; save it with the program, as "
                "save_program(folder, args, kwargs), or torch.save a list of the flat arguments of "
                "every microbatch."
            )
        found = torch.load(path, map_location=self.device)
        if len(found) != count:
            raise InputError(
                f"batch.pt has {len(found)} microbatches, and the program runs {count}."
            )
        return [[self._part(flat[at], each) for at, each in inputs] for flat in found]

    def finish(
        self,
        loss: Tensor | None,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[Sequence[Tensor]] = (),
    ) -> dict[str, Any]:
        """Write loss, gradients (this rank's, as parameters are stored) and outputs of every
        microbatch to `result_N.pt`; what was written."""
        gradients = {path: each.grad for path, each in parameters.items()}
        result = {"loss": loss, "gradients": gradients, "outputs": [list(e) for e in outputs]}
        torch.save(result, self.folder / f"result_{self.number}.pt")
        if self.number == 0 and loss is not None:
            print(f"loss {float(loss):.17g}")
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return result


# -- pipelines -------------------------------------------------------------------------------------


class _Part(nn.Module):
    """A function of a saved program, as an executor and a stage see the part of an emitted one."""

    def __init__(self, function: Callable[..., Any], again: Sequence[Callable[..., Any]]) -> None:
        super().__init__()
        self._function = function
        self.graph = fx.Graph()
        for part in again:
            original: Any = part.__wrapped__  # type: ignore[attr-defined]
            self.add_module(part.__name__, Recomputed(original))
            self.graph.call_module(part.__name__)

    def forward(self, *values: Any) -> Any:
        return self._function(*values)


@dataclass(frozen=True)
class _Stage:
    number: int
    parts: Mapping[str, Any]
    loss: TensorSpec | None


def stage(
    number: int,
    *,
    prologue: Callable[..., Any],
    body: Callable[..., Any],
    parameters: Sequence[TensorSpec],
    state: Sequence[TensorSpec],
    updates: Sequence[TensorSpec],
    inputs: Sequence[tuple[int, TensorSpec]],
    received: Sequence[TensorSpec],
    sent: Sequence[TensorSpec],
    gathers: bool,
    again: Sequence[Callable[..., Any]] = (),
    loss: tuple[int, TensorSpec] | None = None,
) -> _Stage:
    """A stage of a saved pipeline; loss: where it is among what the body returns, and its form."""
    parts = {
        "parameters": tuple(parameters),
        "state": tuple(state),
        "updates": tuple(updates),
        "inputs": tuple(inputs),
        "outputs": () if loss is None else (OutputSpec(loss[0]),),
        "loss": None if loss is None else 0,
        "prologue": _Part(prologue, ()),
        "body": _Part(body, again),
        "epilogue": _Part(prologue, ()),
        "received": tuple(received),
        "sent": tuple(sent),
        "gathers": gathers,
    }
    return _Stage(number, parts, None if loss is None else loss[1])


class _Feed:
    """What a stage reads of the batch, and the buffers that it changes."""

    def __init__(self, batches: Sequence[Sequence[Tensor]], buffers: Sequence[Tensor]) -> None:
        self._batches, self._buffers = batches, list(buffers)

    def inputs(self, microbatch: int) -> list[Any]:
        return [*(each.clone() for each in self._buffers), *self._batches[microbatch]]

    def take(self, microbatch: int, outputs: list[Any], buffers: list[Any]) -> None:
        self._buffers = list(buffers)


class Pipeline:
    """The stages of this rank, among those of others.

    ranks: the pipeline rank of every stage. homes: path -> the pipeline ranks that hold a parameter
    on several.
    """

    def __init__(
        self,
        rank: Rank,
        schedule: str,
        ranks: Sequence[int],
        homes: Mapping[str, Sequence[int]],
        loss: TensorSpec,
    ) -> None:
        from autoplan.runtime.torch_stage import RankRunner  # torch's pipelining takes a second

        self._rank, self._ranks, self._homes, self._loss = rank, ranks, homes, loss
        size = 1 + max(ranks)
        self._place = pipeline_place(size, rank.mesh.num_devices, rank.device)
        self._runner = RankRunner(read_schedule(schedule, len(ranks) // size), self._place)
        self._executor = rank.executor()
        self.parameters: dict[str, Tensor] = {}

    def step(self, stages: Sequence[_Stage], microbatches: int, grad: bool = True) -> Tensor:
        """Forward and backward of all microbatches; the mean loss, on every rank."""
        rank, at = self._rank, self._place.rank
        programs = [
            Program(mesh=rank.mesh, coordinates=rank.coordinates, **each.parts) for each in stages
        ]
        for program in programs:
            for one in program.parameters:
                if one.name not in self.parameters:
                    self.parameters[one.name] = rank.value(one)
        relay = PeerRelay(self._place, self._ranks, self._homes, ())
        with torch.set_grad_enabled(grad):
            read, _ = relay.begin({(at, path): v for path, v in self.parameters.items()}, ())
            steps = []
            for each, program in zip(stages, programs, strict=True):
                given = [read[at, one.name] for one in program.parameters]
                given += [rank.value(one) for one in program.state]
                feed = _Feed(
                    rank.batches(program.inputs, microbatches),
                    [rank.value(one) for one in program.updates],
                )
                values = self._executor.run("prologue", [program], given)
                steps.append(
                    StageStep(
                        self._executor, [program], values, feed,
                        number=each.number, microbatches=microbatches, grad=grad,
                    )
                )  # fmt: skip
            self._runner.run(steps, microbatches, not grad)
            if grad:
                backward([relay.anchor, *(root for step in steps for root in step.roots())])
        return self._mean_loss(steps)

    def _mean_loss(self, steps: Sequence[StageStep]) -> Tensor:
        found = None
        for step in steps:
            if step.number == len(self._ranks) - 1:
                found = torch.stack([step.losses[each] for each in sorted(step.losses)]).mean()
        return share(found, self._ranks[-1], self._place, self._loss)


# -- starting --------------------------------------------------------------------------------------


def start(file: str, programs: Mapping[int, str]) -> None:
    """Run the program of every rank: of this one under torchrun, else of each in a process here."""
    if "RANK" in os.environ:
        _run(file, programs, int(os.environ["RANK"]))
        return
    port = _free_port()
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(file, programs, rank, port)) for rank in sorted(programs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [rank for rank, each in zip(sorted(programs), processes, strict=True) if each.exitcode]
    if failed:
        sys.exit(f"ranks {failed} failed")


def _run(file: str, programs: Mapping[int, str], rank: int, port: int = 0) -> None:
    if port:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(len(programs))}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(programs)))
    runpy.run_path(str(Path(file).parent / programs[rank]), run_name="__main__")


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
