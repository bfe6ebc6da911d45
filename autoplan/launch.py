"""Where a parallel module runs: processes that torchrun started, or ranks simulated here."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import zlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.errors import ConfigError, InputError
from autoplan.mesh import Mesh
from autoplan.runtime.executor import DistributedExecutor, Executor, SimulatedExecutor


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def same_everywhere(value: Tensor, executor: Executor) -> Tensor:
    """Rank 0's value, as data parallelism expects: ranks may have initialised differently.

    Others may have none, on the meta device.
    """
    if isinstance(executor, DistributedExecutor) and dist.get_world_size() > 1:
        if value.is_meta:
            value = torch.empty(value.shape, dtype=value.dtype, device=executor.device)
        value = value.to(executor.device, copy=True).contiguous()
        dist.broadcast(value, src=0)
    return value


def paths_without_values(model: nn.Module) -> frozenset[str]:
    """Parameters and buffers that are on the meta device: on rank 0, whose model counts."""
    tensors = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    box = [frozenset(path for path, tensor in tensors if tensor.is_meta)]
    if distributed():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def make_executors(meshes: Sequence[Mesh], model: nn.Module, seed: int) -> dict[int, Executor]:
    """By pipeline rank, of those that are present in this process; `meshes`: of every one.

    Real ranks under torchrun (or an initialised process group), simulated ones otherwise.
    """
    first = next((p for p in (*model.parameters(), *model.buffers()) if not p.is_meta), None)
    devices = sum(mesh.num_devices for mesh in meshes)
    if start_process_group(devices):
        if dist.get_world_size() != devices:
            raise ConfigError(
                f"the plan is for {devices} devices, torchrun started "
                f"{dist.get_world_size()} processes; start as many as devices."
            )
        if "nccl" in dist.get_backend():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank())))
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        own = dist.get_rank() // meshes[0].num_devices
        # Every rank takes part in making every mesh, in one order.
        made = {mesh: _device_mesh(mesh, len(meshes), device) for mesh in dict.fromkeys(meshes)}
        return {own: DistributedExecutor(meshes[own], device, seed, made[meshes[own]])}
    at = first.device if first is not None else torch.device("cpu")
    return {rank: SimulatedExecutor(mesh, at, seed) for rank, mesh in enumerate(meshes)}


def _device_mesh(mesh: Mesh, pipeline_ranks: int, device: torch.device) -> DeviceMesh:
    """`mesh` over this rank's part of the job: one of `pipeline_ranks` equal parts."""
    sizes = mesh.sizes or (1,)
    names = mesh.axes or ("devices",)
    if pipeline_ranks == 1:
        return init_device_mesh(device.type, sizes, mesh_dim_names=names)
    outer = next(name for name in ("pipeline", "pipeline_rank") if name not in names)
    whole = init_device_mesh(device.type, (pipeline_ranks, *sizes), mesh_dim_names=(outer, *names))
    return whole[names if len(names) > 1 else names[0]]


def start_process_group(devices: int) -> bool:
    """Join the group that torchrun prepared, if nobody has yet; False where there is none."""
    if not dist.is_available():
        return False
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
            return False
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
        atexit.register(_leave_process_group)
    return dist.get_world_size() > 1


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    size = os.environ.get("WORLD_SIZE")
    if size is None:
        raise ConfigError("say for how many devices: parallelize(model, devices=4).")
    return int(size)


def agree_on_arguments(
    mode: Any, example: Any, local_inputs: bool, known: bool, asked: str = ""
) -> None:
    """Raise InputError on every rank where ranks were given arguments that do not go together.

    Shapes, types and plain values must be the same on all ranks, in every call; without
    `local_inputs` the contents too, which is checked once for each form of arguments. So must be
    what is `asked`: another method or option, on one rank alone, would leave others waiting.
    """
    if not distributed():
        return
    leaves = pytree.tree_leaves(example)
    forms = [_form_text(leaf) for leaf in leaves]
    form = zlib.crc32(repr((mode, forms, asked)).encode())
    content = 0
    if not local_inputs and not known:
        for leaf in leaves:
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                data = leaf.detach().cpu().contiguous().flatten().view(torch.uint8)
                content = zlib.crc32(data.numpy().tobytes(), content)
    device = "cuda" if "nccl" in dist.get_backend() else "cpu"
    mine = [form, -form, int(known), -int(known), content, -content]
    most = torch.tensor(mine, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    largest = most.tolist()
    if largest[0] != -largest[1] or largest[2] != -largest[3]:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (f"({', '.join(forms)})", asked))
        raise InputError(_what_differs(everyone))
    if not known and largest[4] != -largest[5]:
        raise InputError(
            "ranks were given different contents, but each must pass the whole batch; seed the "
            "data alike, or give every rank its own part with local_inputs=True."
        )


def _what_differs(everyone: Sequence[tuple[str, str]]) -> str:
    """What ranks do not agree on, of the arguments and of what is asked on every one of them."""
    given, asked = zip(*everyone, strict=True)
    if len(set(given)) > 1:
        return (
            f"ranks were given different arguments: {', '.join(given)}. Give all the same "
            "shapes and values: drop or pad a last, smaller batch."
        )
    if len(set(asked)) > 1:
        return f"ranks were asked for different things: {'; '.join(asked)}. Call all alike."
    return (
        "ranks differ in the train or eval mode of a module, in which parameters want a gradient, "
        "or in the calls before this one; do the same on all."
    )


def _form_text(leaf: Any) -> str:
    """What ranks must agree on, as text that is the same in every process."""
    if isinstance(leaf, Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
    plain = leaf is None or isinstance(leaf, (bool, int, float, str))
    return repr(leaf) if plain else type(leaf).__name__


@contextlib.contextmanager
def ctrl_c_ignored(wanted: bool) -> Iterator[None]:
    """Ctrl-C, which reaches every process of a terminal, is left to the rank that works."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
