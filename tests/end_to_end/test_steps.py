"""Training steps: microbatches, forward only, outputs; lazy planning; train, eval and no_grad."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autoplan
from autoplan.runtime.reference import run_reference
from tests.end_to_end.training import error, errors, gradients
from tests.models import (
    FreeParameters,
    Mlp,
    gpt2,
    ideal_cluster,
    language_batch,
    llama,
    vector_batch,
)

PLANS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in ("ddp", "fsdp", "megatron", "megatron-sp")},
    "data x tensor": {"parallel": {"data": 2, "tensor": {"size": 2, "mode": "1d"}}},
    "fast links": {"cluster": ideal_cluster(4)},
}


def seeded(build: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    return build(**config)


@pytest.mark.parametrize("name", PLANS)
def test_microbatches_equal_one_batch(name: str) -> None:
    args, kwargs = language_batch(8, 8)
    module = autoplan.parallelize(seeded(gpt2), args, kwargs, devices=4, **PLANS[name])
    whole = module.train_step(args, kwargs)
    first = gradients(module)
    module.zero_grad()
    parts = module.train_step(args, kwargs, microbatches=2)
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-12)
    assert max(errors(gradients(module), first).values()) < 1e-12
    module.train_step(args, kwargs, microbatches=2)  # gradients add up, as with backward
    doubled = {path: 2 * each for path, each in first.items()}
    assert max(errors(gradients(module), doubled).values()) < 1e-12


def test_forward_only_leaves_gradients_alone() -> None:
    args, kwargs = language_batch(8, 8)
    module = autoplan.parallelize(seeded(gpt2), args, kwargs, devices=4, preset="fsdp")
    result = module.train_step(args, kwargs, microbatches=2, forward_only=True)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert result.outputs is None
    assert not result.loss.requires_grad
    trained = module.train_step(args, kwargs, microbatches=2)
    assert float(trained.loss) == float(result.loss)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_outputs_come_one_tree_a_microbatch() -> None:
    args, kwargs = language_batch(8, 8)
    model = seeded(llama)
    model.config.use_cache = False
    truth = run_reference(model, args, kwargs, 0, 0)
    module = autoplan.parallelize(model, args, kwargs, devices=4, preset="megatron")
    for microbatches in (1, 2, 4):
        step = module.train_step(args, kwargs, microbatches=microbatches, outputs=True)
        assert step.outputs is not None
        assert len(step.outputs) == microbatches
        logits = torch.cat([each.logits for each in step.outputs])
        assert error(logits.detach(), truth.logits.detach()) < 1e-12
        losses = [float(each.loss) for each in step.outputs]
        assert sum(losses) / microbatches == pytest.approx(float(step.loss), rel=1e-12)
    called = module(*args, **kwargs)
    assert type(called) is type(truth)
    assert error(called.logits.detach(), truth.logits.detach()) < 1e-12


def test_outputs_without_a_loss_train_too() -> None:
    """The user's own loss outside of the model, also from outputs that the plan did not price."""
    (x, y), _ = vector_batch()
    model = seeded(Mlp)
    truth = torch.nn.functional.mse_loss(model(x), y)
    truth.backward()
    expected = {path: parameter.grad for path, parameter in model.named_parameters()}
    module = autoplan.parallelize(model, (x,), devices=4, cluster=ideal_cluster(4))
    loss = torch.nn.functional.mse_loss(module(x), y)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(truth.detach()), rel=1e-12)
    assert max(errors(gradients(module), expected).values()) < 1e-12

    x = torch.randn(4, 6, 8, dtype=torch.float64)
    model = seeded(FreeParameters)
    truth = model(x)["out"].sin().sum()
    truth.backward()
    trained = {p: q.grad for p, q in model.named_parameters() if q.requires_grad}
    module = autoplan.parallelize(model, (x,), devices=4, cluster=ideal_cluster(4))
    module(x)["out"].sin().sum().backward()
    assert max(errors(gradients(module), trained).values()) < 1e-12
    assert module.get_parameter("frozen.weight").grad is None


def test_a_step_needs_a_loss_and_a_batch_that_divides() -> None:
    args, kwargs = language_batch(6, 8)
    module = autoplan.parallelize(seeded(gpt2), devices=2)
    with pytest.raises(autoplan.InputError, match=r"no scalar loss.*labels"):
        module.train_step(args)
    with pytest.raises(autoplan.InputError, match=r"batch of 6 .* 4 equal microbatches"):
        module.train_step(args, kwargs, microbatches=4)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(autoplan.InputError, match="microbatches"):
            module.train_step(args, kwargs, microbatches=wrong)  # type: ignore[arg-type]


# -- planning at the first call ---------------------------------------------------------------


def test_it_plans_at_the_first_call_and_again_for_new_shapes() -> None:
    model = seeded(gpt2)
    module = autoplan.parallelize(model, devices=8, cluster=ideal_cluster(8))
    with pytest.raises(autoplan.InputError, match="no plan yet"):
        _ = module.plan
    truth = seeded(gpt2)
    truth.config.use_cache = False
    layouts = []
    for rows, length in ((8, 16), (4, 8), (3, 5)):
        args, kwargs = language_batch(rows, length)
        loss = module(*args, **kwargs).loss
        expected = run_reference(truth, args, kwargs, 0, 0).loss
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert module.verify(args, kwargs).ok
        plan = [each.planned.plan for each in module._entries.values()][-1]
        rows_of_plan = [row for row in plan.tensors if row.kind == "parameter"]
        layouts.append((plan.mesh, {row.path: row.layout for row in rows_of_plan}))
    assert layouts[0] == layouts[1] == layouts[2]
    assert any("S" in layout for layout in layouts[0][1].values())
    assert len(module._entries) == 3
    module(*language_batch(4, 8)[0])  # without labels: one more form
    assert len(module._entries) == 4
    assert module.plan.mesh == layouts[0][0]


def test_an_optimizer_before_the_plan_is_told_why_it_has_no_parameters() -> None:
    module = autoplan.parallelize(seeded(Mlp), devices=4)
    with pytest.raises(autoplan.InputError, match="no plan yet"):
        torch.optim.AdamW(module.parameters())
    with pytest.raises(autoplan.InputError, match="no plan yet"):
        module.state_dict()


def test_weights_belong_to_all_forms() -> None:
    """A step on one shape moves the weights that the next shape sees."""
    module = autoplan.parallelize(
        seeded(gpt2), *language_batch(8, 16), devices=4, cluster=ideal_cluster(4)
    )
    reference = seeded(gpt2)
    reference.config.use_cache = False
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (module, reference)]
    for rows, length in ((8, 16), (4, 8), (8, 16)):
        args, kwargs = language_batch(rows, length)
        loss = module(*args, **kwargs).loss
        expected = run_reference(reference, args, kwargs, 0, 0).loss
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
        loss.backward()
        expected.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_train_and_eval_and_no_grad() -> None:
    args, kwargs = language_batch(4, 8)
    model = seeded(gpt2, dropout=0.5)
    still = seeded(gpt2).eval()
    still.config.use_cache = False
    truth = float(run_reference(still, args, kwargs, 0, 0).loss.detach())
    module = autoplan.parallelize(model, devices=4, preset="fsdp")
    assert module.training
    dropped = float(module(*args, **kwargs).loss.detach())
    assert abs(dropped - truth) > 1e-4
    module.eval()
    evaluated = module(*args, **kwargs).loss
    assert float(evaluated.detach()) == pytest.approx(truth, rel=1e-12)
    with torch.no_grad():
        loss = module(*args, **kwargs).loss
    assert not loss.requires_grad
    assert float(loss) == float(evaluated.detach())
    module.train()
    again = module(*args, **kwargs).loss
    assert abs(float(again.detach()) - truth) > 1e-4
    again.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_planned_for_inference_it_still_answers() -> None:
    args, _ = language_batch(4, 8)
    model = seeded(llama).eval()
    with torch.no_grad():
        truth = run_reference(model, args, {"use_cache": False}, 0, 0).logits
    module = autoplan.parallelize(model, args, devices=4, training=False, cluster=ideal_cluster(4))
    with torch.no_grad():
        logits = module(*args).logits
    assert error(logits, truth) < 1e-12
    assert module.plan.memory.gradients == module.plan.memory.optimizer == 0


def test_a_given_plan_is_followed() -> None:
    args, kwargs = language_batch(8, 8)
    plan = autoplan.plan(
        seeded(gpt2),
        args,
        kwargs,
        devices=4,
        preset="megatron-sp",
        hints={"lm_head.weight": "S(1)"},
    )
    module = autoplan.parallelize(seeded(gpt2), args, kwargs, plan=plan)
    assert module.plan == plan
    assert module.verify(args, kwargs).ok


def test_state_dict_keys_are_the_models_own() -> None:
    for build, (args, kwargs) in (
        (gpt2, language_batch()),
        (Mlp, vector_batch()),
        (FreeParameters, ((torch.randn(4, 6, 8, dtype=torch.float64),), {})),
    ):
        model = seeded(build)
        state = {path: each.clone() for path, each in model.state_dict().items()}
        names = [path for path, _ in model.named_parameters()]
        module = autoplan.parallelize(model, args, kwargs, devices=4, preset="fsdp")
        assert list(module.state_dict()) == list(state)
        assert [path for path, _ in module.named_parameters()] == names
        assert max(errors(module.full_state_dict(), state).values()) == 0.0
        fresh = build()
        fresh.load_state_dict(module.full_state_dict())
        module.load_full_state_dict(fresh.state_dict())


def test_gradients_of_gradients_of_arguments() -> None:
    (x, y), _ = vector_batch()
    x.requires_grad_()
    model = seeded(Mlp)
    module = autoplan.parallelize(model, (x, y), devices=4, cluster=ideal_cluster(4))
    found = []
    for each in (module, seeded(Mlp)):
        [slope] = torch.autograd.grad(each(x, y), x, create_graph=True)
        slope.square().sum().backward()
        found.append({path: p.grad for path, p in each.named_parameters()})
    for path, grad in found[1].items():
        torch.testing.assert_close(found[0][path], grad, rtol=1e-10, atol=1e-14)
