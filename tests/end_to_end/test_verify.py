"""`verify` can fail: a corrupted program is found, and the place is named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import autoplan
from autoplan.differences import relative_error
from tests.models import Mlp, gpt2, ideal_cluster, language_batch, vector_batch
from tests.runtime.launch import run_ranks


def megatron() -> tuple[autoplan.ParallelModule, Any]:
    torch.manual_seed(0)
    args, kwargs = language_batch(4, 8)
    model = gpt2(n_layer=2)
    return autoplan.parallelize(model, args, kwargs, devices=4, preset="megatron"), (args, kwargs)


def boxes(module: autoplan.ParallelModule, part: str, text: str) -> list[list[fx.Node]]:
    """The boxing nodes with this text: one list a place, with every rank's node."""
    [entry] = module._entries.values()
    graphs = [getattr(program, part).graph for program in entry.programs]
    places = zip(
        *(graph.find_nodes(op="call_method", target="box") for graph in graphs), strict=True
    )
    return [list(nodes) for nodes in places if nodes[0].args[2] == text]


def rewrite(nodes: list[fx.Node], text: str) -> None:
    for node in nodes:
        node.args = (*node.args[:2], text, *node.args[3:])


def skip(nodes: list[fx.Node]) -> None:
    """Readers take what the boxing would have converted."""
    for node in nodes:
        node.replace_all_uses_with(node.args[1])
        graph = node.graph
        graph.erase_node(node)
        for each in graph.nodes:  # values may now live longer
            each.meta.pop("last_uses", None)


def recompile(module: autoplan.ParallelModule) -> None:
    for entry in module._entries.values():
        for program in entry.programs:
            for part in (program.prologue, program.body, program.epilogue):
                part.recompile()


def test_a_sound_program_passes() -> None:
    module, (args, kwargs) = megatron()
    found = module.verify(args, kwargs)
    assert found.ok
    assert bool(found)
    assert found.first_difference is None
    assert set(found.gradient_errors) == {path for path, _ in module.named_parameters()}
    assert all(parameter.grad is None for parameter in module.parameters())
    assert str(found).startswith("equal within")


def test_a_dropped_reduction_is_found_where_it_is() -> None:
    """Without its all-reduce the second block's MLP gives each rank an addend only."""
    module, (args, kwargs) = megatron()
    places = [
        nodes
        for text in ("P -> B", "P -> B/P")
        for nodes in boxes(module, "body", text)
        if "h.1.mlp" in nodes[0].meta["note"] or "h.1.mlp" in str(nodes[0].args[1].meta["note"])
    ]
    assert places
    skip(places[0])
    recompile(module)
    found = module.verify(args, kwargs)
    assert not found.ok
    assert found.loss_error > 1e-6
    assert found.first_difference is not None
    path = found.first_difference.path
    assert path.startswith(("transformer.h.1", "transformer.ln_f"))
    assert path in str(found)
    assert "DIFFERENT" in str(found)
    assert ".py" in found.first_difference.source


def test_a_wrong_dual_shows_in_gradients_alone() -> None:
    """P -> B/P moves the same value as P -> B; its gradient is summed once too often."""
    module, (args, kwargs) = megatron()
    changed = None
    for text, wrong in (("P -> B", "P -> B/P"), ("P -> B/P", "P -> B")):
        for nodes in boxes(module, "body", text):
            if "transformer.h.0" in str(nodes[0].meta["note"]):
                changed = changed or (rewrite(nodes, wrong), text)
    assert changed is not None
    recompile(module)
    found = module.verify(args, kwargs)
    assert not found.ok
    assert found.loss_error < 1e-12
    difference = found.first_difference
    assert difference is not None
    assert difference.direction == "backward"
    assert difference.path.startswith("transformer.h.0")
    assert "on devices" in difference.collective
    assert f"after {difference.collective}" in str(difference)
    wrong_paths = {path for path, error in found.gradient_errors.items() if error > 1e-6}
    assert wrong_paths
    assert not any(path.startswith("transformer.h.1") for path in wrong_paths)
    assert "worst gradient" in str(found)


class Counted(nn.Module):
    """Batch norm, a moving average of its own, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.mlp = Mlp()
        self.register_buffer("average", torch.zeros(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.double()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        with torch.no_grad():
            self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.mlp(self.norm(x) + self.average, y)


@pytest.mark.parametrize("preset", ["ddp", None])
def test_buffers_and_weights_after_steps_are_compared(preset: str | None) -> None:
    torch.manual_seed(0)
    args, kwargs = vector_batch(6)
    model = Counted()
    module = autoplan.parallelize(model, args, kwargs, devices=4, preset=preset)
    found = module.verify(args, kwargs, steps=3)
    assert found.ok, str(found)
    assert set(found.buffer_errors) == {path for path, _ in model.named_buffers()}
    assert set(found.weight_errors) == {path for path, _ in model.named_parameters()}
    assert int(module.get_buffer("calls")) == 0  # the module's own state is left alone
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert module.verify(args, kwargs, steps=2, optimizer=sgd).ok
    module(*args, **kwargs)
    model(*args, **kwargs)
    for path, buffer in model.named_buffers():
        torch.testing.assert_close(module.get_buffer(path), buffer, rtol=1e-12, atol=1e-12)


def test_a_wrong_buffer_is_found() -> None:
    torch.manual_seed(0)
    args, kwargs = vector_batch(6)
    module = autoplan.parallelize(Counted(), args, kwargs, devices=2, preset="ddp")
    [entry] = module._entries.values()
    for program in entry.programs:
        graph = program.body.graph
        [count] = [n for n in graph.nodes if n.name.startswith("add") and n.args[1:] == (1,)][:1]
        count.args = (count.args[0], 2)
    recompile(module)
    found = module.verify(args, kwargs)
    assert not found.ok
    assert max(found.gradient_errors.values()) < 1e-9
    with pytest.raises(autoplan.VerificationError, match="worst buffer") as caught:
        module.verify(args, kwargs, raises=True)
    assert caught.value.check.buffer_errors == found.buffer_errors


def test_the_model_s_own_precision() -> None:
    torch.manual_seed(0)
    args, kwargs = language_batch(4, 8)
    module = autoplan.parallelize(gpt2().float(), args, kwargs, devices=4, preset="megatron-sp")
    found = module.verify(args, kwargs, precision="model", steps=2)
    assert found.ok, str(found)
    assert found.tolerance == 1e-4
    assert max(found.gradient_errors.values()) > 1e-12


@pytest.mark.parametrize(
    ("given", "wrong"), [({"precision": "float32"}, "precision"), ({"steps": -1}, "steps")]
)
def test_what_verify_does_not_take(given: dict[str, Any], wrong: str) -> None:
    module = autoplan.parallelize(Mlp(), *vector_batch(), devices=2)
    with pytest.raises(autoplan.InputError, match=wrong):
        module.verify(*vector_batch(), **given)


def test_a_gradient_that_is_not_summed() -> None:
    """Data parallelism without its all-reduce: every gradient is that of a part of the batch."""
    torch.manual_seed(0)
    example = vector_batch()
    module = autoplan.parallelize(Mlp(), *example, devices=4, preset="ddp")
    [entry] = module._entries.values()
    for program in entry.programs:
        for node in program.prologue.graph.nodes:
            if node.op == "call_method":
                node.args = fx.node.map_aggregate(
                    node.args,
                    lambda each: (
                        each.replace("B -> B/P", "B -> B") if isinstance(each, str) else each
                    ),
                )
    recompile(module)
    found = module.verify(*example)
    assert not found.ok
    assert found.loss_error < 1e-12
    assert min(found.gradient_errors.values()) > 1e-6


def wrong_gelu(node: fx.Node) -> None:
    node.kwargs = {
        **node.kwargs,
        "approximate": "none" if node.kwargs.get("approximate") else "tanh",
    }


def wrong_scale(node: fx.Node) -> None:
    node.args = (*node.args[:4], 2 * (node.args[4] if len(node.args) > 4 else 1e-5))


@pytest.mark.parametrize(
    ("op", "change", "path"),
    [
        ("aten.gelu", wrong_gelu, "fc1"),
        ("aten.layer_norm", wrong_scale, "transformer.h.0.ln_1"),
    ],
)
def test_a_wrong_local_op_is_named(op: str, change: Callable[[fx.Node], None], path: str) -> None:
    torch.manual_seed(0)
    if op == "aten.gelu":
        example = vector_batch()
        module = autoplan.parallelize(Mlp(), *example, devices=4, preset="megatron")
        expected = ""  # F.gelu in the model itself
    else:
        example = language_batch(4, 8)
        module = autoplan.parallelize(gpt2(), *example, devices=4, preset="megatron")
        expected = path
    [entry] = module._entries.values()
    for program in entry.programs:
        nodes = [n for n in program.body.graph.nodes if str(n.target).startswith(op)]
        change(nodes[0])
    recompile(module)
    found = module.verify(*example)
    assert not found.ok
    assert found.first_difference is not None
    assert found.first_difference.path == expected
    assert op.removeprefix("aten.") in found.first_difference.node
    assert ".py:" in found.first_difference.source


def test_dropout_is_not_taken_for_the_difference() -> None:
    torch.manual_seed(0)
    example = language_batch(4, 8)
    module = autoplan.parallelize(gpt2(dropout=0.1), *example, devices=4, preset="megatron")
    [entry] = module._entries.values()
    for program in entry.programs:
        nodes = program.body.graph.nodes
        wrong_scale([n for n in nodes if str(n.target).startswith("aten.layer_norm")][-1])
    recompile(module)
    found = module.verify(*example)
    assert not found.ok
    assert found.first_difference is not None
    assert found.first_difference.path == "transformer.ln_f"
    assert "all_reduce" in found.first_difference.collective


def test_gradients_in_flight_are_left_alone() -> None:
    torch.manual_seed(0)
    example = vector_batch()
    module = autoplan.parallelize(Mlp(), *example, devices=4, preset="fsdp")
    module.train_step(*example)
    before = {path: parameter.grad.clone() for path, parameter in module.named_parameters()}
    assert module.verify(*example).ok
    for path, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, before[path])


def test_a_model_in_float32_is_compared_in_float64() -> None:
    torch.manual_seed(0)
    args, kwargs = language_batch(4, 8)
    module = autoplan.parallelize(gpt2().float(), args, kwargs, devices=4, preset="megatron-sp")
    found = module.verify(args, kwargs)
    assert found.ok, str(found)
    assert max(found.gradient_errors.values()) < 1e-12
    assert next(module.parameters()).dtype == torch.float32


def _verify_on_ranks(rank: int, world: int) -> tuple[str, list[Any]]:
    torch.manual_seed(rank)  # rank 0's weights count
    args, kwargs = vector_batch(6)
    module = autoplan.parallelize(
        Counted(), args, kwargs, devices=world, preset="megatron", cluster=ideal_cluster(world)
    )
    sound = str(module.verify(args, kwargs, steps=2, raises=True))
    [entry] = module._entries.values()
    for node in entry.programs[0].body.graph.nodes:
        if str(node.target).startswith("aten.gelu"):
            wrong_gelu(node)
    recompile(module)
    found = module.verify(args, kwargs)
    assert found.first_difference is not None
    return sound, [found.ok, found.gradient_errors, str(found.first_difference)]


def test_real_ranks_agree_on_what_they_found() -> None:
    results = run_ranks(_verify_on_ranks, 4, 4)
    assert all(sound.startswith("equal") for sound, _ in results)
    _, (ok, errors, difference) = results[0]
    assert not ok
    assert "gelu" in difference
    assert all(found == [ok, errors, difference] for _, found in results)


class Scaled(nn.Module):
    """The first layer's rows are divided by an argument, which may be zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.second(x)
        return y.square().mean(), self.first(x) / by


class ScaledLoss(Scaled):
    """Of which the loss, and one gradient, are not finite."""

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, y = super().forward(x, by)
        return loss + (y * 0.0).mean(), y


@pytest.mark.parametrize("build", [Scaled, ScaledLoss])
def test_what_is_not_finite_in_the_original_is_compared_by_place(
    build: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    by = torch.ones(8, 1, dtype=torch.float64)
    by[3] = 0.0
    args = (torch.randn(8, 6, dtype=torch.float64), by)
    module = autoplan.parallelize(build(), args, devices=2, cluster="cpu", preset="ddp")
    found = module.verify(args, steps=2)
    assert found.ok, found
    assert "the original itself is not finite in output" in str(found)
    finite = module.verify((args[0], torch.ones_like(by)), steps=2)
    assert finite.ok
    assert not finite.not_finite


def test_a_nan_on_one_side_alone_is_different() -> None:
    nan, one = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 1.0])
    assert relative_error(nan, nan) == 0.0
    for value, truth in ((nan, one), (one, nan), (None, nan), (nan, None)):
        assert relative_error(value, truth) == float("inf")
