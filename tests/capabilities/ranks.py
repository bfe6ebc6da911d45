"""What the ranks of the capability rows run: a module, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed.tensor import DTensor

import autoplan
from autoplan.replay import Emitted
from tests.end_to_end.training import error, own_rows
from tests.models import (
    Example,
    FreeParameters,
    Mlp,
    Product,
    gpt2,
    ideal_cluster,
    language_batch,
    sequence_batch,
    vector_batch,
)


@dataclass(frozen=True)
class Held:
    """What one rank saw: its parts of the results of modules, its weights, and the whole result."""

    local: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[int, ...]]
    error: float
    shape: tuple[int, ...]
    mesh: str


def hold(model: nn.Module, example: Example, **options: Any) -> list[Held]:
    """Run `model` once; one entry for every rank that is present in this process."""
    args, kwargs = example
    with torch.no_grad():
        truth = model(*args, **kwargs)
        module = autoplan.parallelize(model, args, kwargs, training=False, **options)
        seen = local_values(module, example)
        out = module(*args, **kwargs)
    return [
        Held(
            {path: tuple(values[rank].shape) for path, values in seen.items()},
            weight_shapes(module, rank),
            error(out, truth),
            tuple(out.shape),
            str(module.plan.mesh),
        )
        for rank in next(iter(seen.values()))
    ]


def local_values(module: autoplan.ParallelModule, example: Example) -> dict[str, dict[int, Tensor]]:
    """By module path the last result, by rank of the job, of those present here."""
    entry = module._first
    buffers = dict(module.named_buffers(remove_duplicate=False))
    emitted = Emitted(module, entry, {**buffers, **module.full_state_dict()}, example, False)
    values: dict[str, dict[int, Tensor]] = {}

    def watch(number: int, node: fx.Node, results: list[Any]) -> None:
        stage, at = entry.stages[number], node.meta.get("site")
        if at is None or not isinstance(results[0], Tensor):
            return
        site = stage.planned.annotated.sites[at]
        first = stage.rank * module._ranks_per_stage
        ranks = (first + rank for rank in module._executors[stage.rank].ranks)
        if site.kind != "parameter":
            values[site.path] = dict(zip(ranks, results, strict=True))

    emitted.run(module._steps, watch)
    return values


def weight_shapes(module: autoplan.ParallelModule, rank: int) -> dict[str, tuple[int, ...]]:
    """What the rank stores of every parameter; in simulation by the layout."""
    mesh = module.plan.mesh
    shapes = {}
    for path, parameter in module.named_parameters():
        if isinstance(parameter, DTensor):
            shapes[path] = tuple(parameter.to_local().shape)
        else:
            layout = module.plan.layout(path)
            at = mesh.coordinates(rank)
            shapes[path] = autoplan.layouts.local_shape(tuple(parameter.shape), layout, mesh, at)
    return shapes


# -- the models of the rows, alike on every rank ------------------------------------------------


def seeded(build: Any, *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return build(*args, **kwargs)


def huge_linear(devices: int) -> list[Held]:
    """Row 1: Linear(2048, 32768), its rows split over the ranks, x whole on each of them."""
    model = nn.Sequential(seeded(nn.Linear, 2048, 32768))
    x = torch.randn(32, 2048)
    hints = {"input": "B", "0.weight": "S(0)", "0.bias": "S(0)"}
    return hold(model, ((x,), {}), devices=devices, hints=hints)


WIDE_PINS: dict[str, Any] = {
    "x": {"data": "S(0)", "tensor": "B"},
    "fc1.weight": {"data": "B", "tensor": "S(0)"},
    "fc1.bias": {"data": "B", "tensor": "S(0)"},
    "fc2.weight": {"data": "B", "tensor": "S(1)"},
    "fc2": {"data": "S(0)", "tensor": "B"},
}


def wide_mlp(devices: int, **options: Any) -> list[Held]:
    """Row 2: 1024 -> 16384 -> GELU -> 1024 on data 2 x tensor 2, batch 32."""
    model = seeded(Mlp, 1024, 16384, dtype=torch.float32)
    x = torch.randn(32, 1024)
    return hold(model, ((x,), {}), devices=devices, **options)


PRODUCTS: dict[str, tuple[dict[str, str], dict[str, tuple[int, ...]]]] = {
    "data": (
        {"input": "S(0)", "0.weight": "B", "0": "S(0)"},
        {"input": (2, 5), "0.weight": (5, 8), "0": (2, 8)},
    ),
    "model": (
        {"input": "B", "0.weight": "S(1)", "0": "S(1)"},
        {"input": (4, 5), "0.weight": (5, 4), "0": (4, 4)},
    ),
}
"""Row 34: layouts of x, of w and of the result, and what each of 2 ranks then holds of them."""


def product(devices: int, way: str) -> list[Held]:
    """Row 34: x [4, 5] @ w [5, 8]."""
    model = nn.Sequential(seeded(Product, 5, 8))
    x = torch.randn(4, 5, dtype=torch.float64)
    return hold(model, ((x,), {}), devices=devices, hints=PRODUCTS[way][0])


def accumulated(devices: int, preset: str) -> tuple[float, float]:
    """Row 13: the loss and the worst gradient of 8 microbatches beside one batch."""
    model = seeded(Mlp)
    x, y = torch.randn(2, 32, 12, dtype=torch.float64)
    loss = model(x, y)
    loss.backward()
    truth = {path: parameter.grad for path, parameter in model.named_parameters()}
    example: Example = ((x, y), {})
    local = dist.is_initialized()
    if local:  # the ranks hold their own rows: microbatches are cut from each rank's part
        example = own_rows(example, dist.get_rank(), dist.get_world_size())
    module = autoplan.parallelize(
        seeded(Mlp), *example, devices=devices, preset=preset, microbatches=4 if local else 8,
        local_inputs=local,
    )  # fmt: skip
    result = module.train_step(*example)
    worst = max(
        error(p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad, truth[path])
        for path, p in module.named_parameters()
        if p.grad is not None
    )
    return abs(float(result.loss - loss.detach())), worst


def rows_on_two(rank: int) -> dict[str, Any]:
    """The rows that need two ranks, on real ones."""
    return {
        "1": huge_linear(2)[0],
        **{f"34 {way}": product(2, way)[0] for way in PRODUCTS},
        "13": accumulated(2, "fsdp"),
    }


def rows_on_four(rank: int) -> dict[str, Any]:
    """The rows that need four ranks, on real ones."""
    mesh = {"data": 2, "tensor": 2}
    return {
        "2 pins": wide_mlp(4, parallel={"mesh": mesh}, hints=WIDE_PINS)[0],
        "2 planner": wide_mlp(4, parallel={"data": 2, "tensor": {"size": 2, "mode": "1d"}})[0],
    }


def models_on_four(rank: int) -> dict[str, str]:
    """What verify says of the rows on models, on real ranks."""
    example = language_batch(4, 7)
    options: dict[str, dict[str, Any]] = {
        "16 data": {"parallel": {"data": 4}},
        "16 tensor": {"parallel": {"tensor": {"size": 4, "mode": "1d"}}},
        "16 pipeline": {"parallel": {"pipeline": 4}},
    }
    said = {
        row: verified(seeded(gpt2, dropout=0.1, n_layer=4), example, devices=4, **given)
        for row, given in options.items()
    }
    ideal: dict[str, Any] = {"cluster": ideal_cluster(4), "parallel": {"mesh": {"a": 2, "b": 2}}}
    said["A"] = verified(seeded(FreeParameters), sequence_batch(6), devices=4, **ideal)
    said["B"] = verified(seeded(Mlp), vector_batch(6), steps=3, devices=4, preset="fsdp")
    return said


def recomputed_on_two(rank: int) -> str:
    """Row 12: what verify says of a model whose blocks are recomputed, on real ranks."""
    options: dict[str, Any] = {"preset": "megatron", "recompute": True}
    return verified(seeded(gpt2, 0.1, n_layer=2), language_batch(), steps=2, devices=2, **options)


def verified(model: nn.Module, example: Example, steps: int = 0, **options: Any) -> str:
    module = autoplan.parallelize(model, *example, **options)
    return str(module.verify(*example, steps=steps))
