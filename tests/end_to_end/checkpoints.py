"""Saving and loading on real ranks: what every rank of `test_state` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.utils import _pytree as pytree

import autoplan
from tests.end_to_end.training import STEPS, Case, batch_of, build, make_optimizer, whole
from tests.models import Mlp, ideal_cluster

BEFORE = STEPS - 1
"""Steps before a checkpoint is saved; the one after it is taken by whoever loads it."""


def on_mesh(ranks: int, axes: dict[str, int], hints: dict[str, Any]) -> dict[str, Any]:
    return {"cluster": ideal_cluster(ranks), "parallel": {"mesh": axes}, "hints": hints}


SAVED: dict[str, Case] = {
    # Tied embeddings of 101 rows: 26, 26, 26, 23.
    "dropout": Case(
        "gpt2", {"preset": "fsdp", "hints": {"lm_head.weight": "S(0)"}}, {"dropout": 0.1}
    ),
    # 6 rows: 2, 2, 2, 0.
    "frozen": Case("free", on_mesh(4, {"a": 4}, {"position": "S(0)"}), optimizer="momentum"),
}
"""How the checkpoints come about, on 4 ranks."""


def another_plan(name: str, ranks: int) -> Case:
    """The same training under a plan that lays the tensors otherwise."""
    axes = {"a": 2, "b": 2} if ranks == 4 else {"a": ranks}
    hints = {"lm_head.weight": "S(1)"}
    if name == "frozen":
        twice = "(S(0), S(0))" if ranks == 4 else "S(0)"
        hints = {"position": "S(1)", "frozen.weight": twice}
    return replace(SAVED[name], options=on_mesh(ranks, axes, hints))


@dataclass(frozen=True)
class Snapshot:
    """What a training holds, whole: weights, the optimizer's state by path, a step later."""

    layouts: dict[str, str]
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    weights_after: dict[str, Tensor] = field(default_factory=dict)


def scrambled(case: Case) -> nn.Module:
    """Another value in everything that a state dict holds."""
    model = build(case)
    torch.manual_seed(17)
    for value in model.state_dict().values():
        value.normal_()
    return model


def on_meta(case: Case) -> nn.Module:
    """No value in anything."""
    with torch.device("meta"):
        return build(case)


def start(
    case: Case, ranks: int, build_model: Callable[[Case], nn.Module] = build
) -> tuple[autoplan.ParallelModule, Any]:
    # A resumed run is given another seed, which the checkpoint replaces.
    seed = 0 if build_model is build else 23
    model = build_model(case)
    module = autoplan.parallelize(model, *batch_of(case), devices=ranks, seed=seed, **case.options)
    return module, make_optimizer(case.optimizer, module.parameters())


def step(case: Case, module: autoplan.ParallelModule, optimizer: torch.optim.Optimizer) -> None:
    module.train_step(*batch_of(case))
    optimizer.step()
    optimizer.zero_grad()


def snapshot(module: autoplan.ParallelModule, optimizer: torch.optim.Optimizer) -> Snapshot:
    _, held = get_state_dict(module, optimizer)
    state = pytree.tree_map(lambda x: whole(x).clone() if isinstance(x, Tensor) else x, held)
    layouts = {row.path: row.layout for row in module.plan.tensors if row.kind == "parameter"}
    return Snapshot(layouts, module.full_state_dict(), state)


def go_on(case: Case, module: autoplan.ParallelModule, optimizer: Any) -> Snapshot:
    before = snapshot(module, optimizer)
    step(case, module, optimizer)
    return replace(before, weights_after=module.full_state_dict())


def save(ranks: int, name: str, folder: str) -> Snapshot:
    """Train, save, and go on."""
    case = SAVED[name]
    module, optimizer = start(case, ranks)
    for _ in range(BEFORE):
        step(case, module, optimizer)
    weights, state = get_state_dict(module, optimizer)
    both = {"model": weights, "optimizer": state}
    checkpoint.save(both, checkpoint_id=str(Path(folder) / name))
    return go_on(case, module, optimizer)


def resume(
    ranks: int, name: str, folder: str, build_model: Callable[[Case], nn.Module] = scrambled
) -> Snapshot:
    """Another module of the same model, under another plan, from the checkpoint."""
    case = another_plan(name, ranks)
    module, optimizer = start(case, ranks, build_model)
    load(module, optimizer, str(Path(folder) / name))
    return go_on(case, module, optimizer)


def load(module: autoplan.ParallelModule, optimizer: Any, path: str) -> None:
    """A checkpoint of weights and the optimizer's state."""
    weights, state = get_state_dict(module, optimizer)
    both = {"model": weights, "optimizer": state}
    checkpoint.load(both, checkpoint_id=path)
    set_state_dict(
        module, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"]
    )


def refused(call: Callable[[], Any]) -> str:
    """What autoplan says to `call`."""
    try:
        call()
    except autoplan.InputError as failure:
        return str(failure)
    return "no error"


# -- models without values ----------------------------------------------------------------------


@contextmanager
def allocations() -> Iterator[list[int]]:
    """Fills with the bytes of every allocation that torch makes meanwhile."""
    sizes: list[int] = []
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield sizes
    events = profile.profiler.kineto_results.events()
    sizes += [event.nbytes() for event in events if event.name() == "[memory]"]


def wide_batch() -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 64, dtype=torch.float64, generator=generator)
    return (x, y), {}


def without_values() -> autoplan.ParallelModule:
    with torch.device("meta"):
        model = Mlp(64, 512)
    return autoplan.parallelize(model, *wide_batch(), devices=dist.get_world_size(), preset="fsdp")


def write_files(folder: Path) -> dict[str, Tensor]:
    """The weights as torch.save and safetensors write them, by rank 0."""
    torch.manual_seed(3)
    state = Mlp(64, 512).state_dict()
    if dist.get_rank() == 0:
        from safetensors.torch import save_file

        torch.save(state, folder / "whole.pt")
        save_file(state, folder / "whole.safetensors")
    dist.barrier()
    return state


def load_sharded(folder: Path, module: autoplan.ParallelModule) -> None:
    checkpoint.load({"model": module}, checkpoint_id=str(folder / "sharded"))


def map_file(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "whole.pt", mmap=True)
    return state


def map_file_on_one_rank(folder: Path) -> dict[str, Tensor] | None:
    return map_file(folder) if dist.get_rank() == 1 else None


def slices_of_file(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    file = safe_open(folder / "whole.safetensors", "pt").__enter__()
    return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)


FILES = {
    "memory-mapped": map_file,
    "safetensors": slices_of_file,
    "from one rank": map_file_on_one_rank,
}


@dataclass(frozen=True)
class Filled:
    """A model without values, before and after loading."""

    before: list[str]
    largest_bytes: int
    equal: bool
    loss: float


def fill(load: Callable[[autoplan.ParallelModule], None], truth: dict[str, Tensor]) -> Filled:
    with allocations() as sizes:
        module = without_values()
        before = [refused(lambda: module(*wide_batch()[0])), refused(module.full_state_dict)]
        load(module)
    loaded = module.full_state_dict()
    equal = all(torch.equal(loaded[path], truth[path]) for path in truth)
    return Filled(before, max(sizes), equal, float(module(*wide_batch()[0]).detach()))


def fill_all(ranks: int, folder: Path) -> dict[str, Any]:
    truth = write_files(folder)
    model = Mlp(64, 512)
    with allocations() as sizes:
        module = autoplan.parallelize(model, *wide_batch(), devices=ranks, preset="fsdp")
    module.load_full_state_dict(truth)
    checkpoint.save({"model": module.state_dict()}, checkpoint_id=str(folder / "sharded"))
    results: dict[str, Any] = {
        "with values": max(sizes),
        "whole": max(each.numel() * each.itemsize for each in truth.values()),
        "loss": float(module(*wide_batch()[0]).detach()),
        "from a checkpoint": fill(partial(load_sharded, folder), truth),
    }
    for name, opened in FILES.items():
        state = opened(folder)  # mapping a file counts as allocating its size
        results[name] = fill(lambda module, s=state: module.load_full_state_dict(s), truth)
    return results


def one_real_model(rank: int, ranks: int) -> bool:
    """Rank 0 has the weights, the others are on the meta device."""
    torch.manual_seed(rank)
    with torch.device("cpu" if rank == 0 else "meta"):
        model = Mlp()
    module = autoplan.parallelize(model, devices=ranks, preset="fsdp")
    module(torch.ones(4, 12, dtype=torch.float64))
    loaded = module.full_state_dict()
    torch.manual_seed(0)
    truth = Mlp().state_dict()
    return all(torch.equal(loaded[path], truth[path]) for path in truth)


def given_whole(rank: int, ranks: int, folder: Path) -> dict[str, bool]:
    """Whole tensors of a model whose last rank holds no row of one parameter."""
    from safetensors.torch import save_file

    states = [build(SAVED["frozen"], seed).state_dict() for seed in range(4)]
    folder = folder / "rows"
    if rank == 0:
        folder.mkdir()
        save_file(states[0], folder / "whole.safetensors")
    dist.barrier()
    module, _ = start(SAVED["frozen"], ranks, on_meta)
    last = ranks - 1
    everywhere = StateDictOptions(full_state_dict=True)
    from_first = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    loads: dict[str, Callable[[Any], Any]] = {
        "slices": lambda _: module.load_full_state_dict(slices_of_file(folder)),
        "load_state_dict": module.load_state_dict,
        "the last rank": lambda s: module.load_full_state_dict(s if rank == last else None),
        "torch": lambda s: set_model_state_dict(module, s, options=everywhere),
        "torch, rank 0": lambda s: set_model_state_dict(
            module, s if rank == 0 else {}, options=from_first
        ),
    }
    found = {"no rows": rank < last or not module.get_parameter("position").to_local().numel()}
    for (name, load_whole), state in zip(loads.items(), [*states, states[0]], strict=True):
        load_whole(dict(state))
        loaded = module.full_state_dict()
        found[name] = all(torch.equal(loaded[path], state[path]) for path in state)
    return found


def misfits(rank: int, ranks: int) -> list[str]:
    """What is said when one rank alone has a state, and it does not fit."""
    module = without_values()
    state: Mapping[str, Tensor] | None = {"fc1.wieght": torch.ones(3)} if rank == 0 else None
    return [
        refused(lambda: module.load_full_state_dict(state)),
        refused(lambda: module.load_full_state_dict(None)),
    ]


def others(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    return {
        "one real model": one_real_model(rank, ranks),
        "given whole": given_whole(rank, ranks, folder),
        "misfits": misfits(rank, ranks),
    }


def on_four(rank: int, folder: str) -> dict[str, Any]:
    ranks = dist.get_world_size()
    results: dict[str, Any] = {f"saved {name}": save(ranks, name, folder) for name in SAVED}
    results |= {f"resumed {name}": resume(ranks, name, folder) for name in SAVED}
    results["filled"] = fill_all(ranks, Path(folder))
    results |= others(rank, ranks, Path(folder))
    return results


def on_two(rank: int, folder: str, simulated: str) -> dict[str, Any]:
    ranks = dist.get_world_size()
    results: dict[str, Any] = {
        f"resumed {name}": resume(ranks, name, folder, on_meta) for name in SAVED
    }
    results["from simulation"] = resume(ranks, "dropout", simulated)
    return results
