"""The parallel module: a planned model that trains as the original does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.capture import Captured, check_arguments
from autoplan.cost_models import Cluster, load_profile
from autoplan.errors import ConfigError, InputError, VerificationError
from autoplan.launch import (
    start_process_group,
    world_size,
)
from autoplan.parallel import mesh_choices
from autoplan.plan import Plan, load_plan
from autoplan.planned import Entry, PlannedModule
from autoplan.refusals import refuse_hooks
from autoplan.request import make_request
from autoplan.runtime.batches import Example
from autoplan.runtime.executor import Watch
from autoplan.runtime.leaves import Handover, backward, leaf_of
from autoplan.runtime.program import Constant
from autoplan.verify import Check, MakeOptimizer, verify


@dataclass(frozen=True)
class StepResult:
    """What `train_step` returns: the mean loss of the microbatches; outputs where asked for."""

    loss: Tensor
    outputs: tuple[Any, ...] | None = None


class ParallelModule(PlannedModule):
    """A model under a plan. Call it, call `backward`, step an optimizer, as with the original.

    Arguments and outputs are logical values; every rank sees the same loss. Parameters are DTensors
    in their storage layout under torch.distributed, logical tensors in simulation.
    """

    # -- running ----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs in its own structure, as logical values on every rank."""
        example: Example = (args, kwargs)
        entry = self._entry_for_call(example)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._request.setting.training):
            values = self._prologue(entry)
            outputs = self._body(entry, values, example)
            return self._outputs(entry, outputs)

    def _prologue(self, entry: Entry) -> list[Any]:
        executor, program = self._live_executor, entry.programs[0]
        parameters = dict(self.named_parameters(remove_duplicate=False))
        buffers = dict(self.named_buffers(remove_duplicate=False))
        taken: set[int] = set()
        inputs = [
            executor.stored(parameters[s.name], self._storage[s.name], taken)
            for s in program.parameters
        ]
        for spec in program.state:
            value = buffers.get(spec.name)
            if value is None:
                value = entry.captured.constants[spec.name]
            inputs.append(executor.give(value, spec.layout))
        return executor.run("prologue", entry.programs, inputs)

    def _body(
        self, entry: Entry, values: list[Any], example: Example, watch: Watch | None = None
    ) -> list[Any]:
        """The body's outputs; buffers that it changes have their new values afterwards."""
        executor, program = self._live_executor, entry.programs[0]
        leaves = pytree.tree_leaves(example)
        held = dict(self.named_buffers(remove_duplicate=False))
        buffers = [executor.give(held[spec.name].clone(), spec.layout) for spec in program.updates]
        inputs = [executor.give(leaves[position], spec.layout) for position, spec in program.inputs]
        executor.set_step(self._steps)
        self._steps += 1
        results = executor.run("body", entry.programs, [*values, *buffers, *inputs], watch)
        outputs = results[: len(results) - len(buffers)]
        with torch.no_grad():
            for spec, new in zip(program.updates, results[len(outputs) :], strict=True):
                held[spec.name].copy_(executor.take(new))
        return outputs

    def _outputs(self, entry: Entry, outputs: list[Any]) -> Any:
        executor, program = self._live_executor, entry.programs[0]
        finals = executor.run("epilogue", entry.programs, outputs)
        flat = [
            each.value if isinstance(each, Constant) else executor.take(finals[each.position])
            for each in program.outputs
        ]
        return pytree.tree_unflatten(flat, entry.captured.out_spec)

    def train_step(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        microbatches: int | None = None,
        outputs: bool = False,
        forward_only: bool = False,
    ) -> StepResult:
        """Forward and backward over microbatches; gradients add to `.grad`.

        The loss is the mean over microbatches, as of one batch with a mean loss; parameters are
        boxed once for all of them. `outputs` also gathers every output, one tree per microbatch;
        `forward_only` leaves the gradients alone. Raises InputError for a batch that does not
        divide, or a model without a scalar loss among its outputs.
        """
        count = self._request.setting.microbatches if microbatches is None else microbatches
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"microbatches must be a positive whole number, got {count!r}.")
        if not self._request.setting.training and not forward_only:
            raise InputError(
                "this module was planned with training=False, whose layouts have no gradients; "
                "plan with training=True, or call train_step(..., forward_only=True)."
            )
        kwargs = {} if kwargs is None else kwargs
        check_arguments(args, kwargs)
        parts = self._cut((tuple(args), dict(kwargs)), count)
        entry = self._entry_for_call(parts[0])
        if entry.programs[0].loss is None:
            raise InputError(
                f"{self._model_name} returned no scalar loss for these arguments; pass labels, or "
                "call the module and compute the loss yourself."
            )
        executor = self._live_executor
        with torch.set_grad_enabled(not forward_only):
            values = self._prologue(entry)
            leaves = [self._leaf(value) for value in values]
            handovers = [[Handover(each) for each in executor.tensors(value)] for value in values]
            del values  # their graph is enough for their backward
            losses, trees = [], []
            for part in parts:
                loss, tree = self._microbatch(entry, leaves, part, count, outputs, forward_only)
                losses.append(loss)
                trees.append(tree)
            if not forward_only:
                self._backward_of_prologue(handovers, leaves)
        return StepResult(torch.stack(losses).mean(), tuple(trees) if outputs else None)

    def _microbatch(
        self,
        entry: Entry,
        leaves: list[Any],
        part: Example,
        count: int,
        outputs: bool,
        forward_only: bool,
    ) -> tuple[Tensor, Any]:
        """Its loss, one of `count`, and its outputs; gradients add to those of `leaves`."""
        executor, program = self._live_executor, entry.programs[0]
        results = self._body(entry, leaves, part)
        assert program.loss is not None
        place = program.outputs[program.loss]
        loss = executor.take(results[place.position])  # type: ignore[union-attr]
        if not outputs:
            results = []  # what nobody asked for need not outlive its last reader
        if not forward_only:
            (loss / count).backward()  # type: ignore[no-untyped-call]
        if not outputs:
            return loss.detach(), None
        with torch.no_grad():
            return loss.detach(), self._outputs(entry, results)

    def _leaf(self, value: Any) -> Any:
        executor = self._live_executor
        return executor.rebuild(value, [leaf_of(each) for each in executor.tensors(value)])

    def _backward_of_prologue(self, handovers: list[list[Handover]], leaves: list[Any]) -> None:
        """Hand the gradients of `leaves` on. Empties `leaves`: gathered values are spent."""
        tensors = self._live_executor.tensors
        roots = [
            handover.take(each)
            for given, leaf in zip(handovers, leaves, strict=True)
            for handover, each in zip(given, tensors(leaf), strict=True)
        ]
        leaves.clear()
        backward(roots)

    # -- looking ----------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan in force, of the first form of arguments."""
        return self._first.planned.plan

    @property
    def code(self) -> str:
        """The emitted program of this rank (rank 0 in simulation) as annotated Python text."""
        return self._first.programs[0].code

    def report(self) -> str:
        """The plan as text."""
        return self.plan.report()

    def verify(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        tolerance: float | None = None,
        precision: Literal["float64", "model"] = "float64",
        steps: int = 0,
        optimizer: MakeOptimizer | None = None,
        raises: bool = False,
    ) -> Check:
        """Run the original and the emitted program on these arguments and compare, on every rank.

        Outputs, every gradient (of arguments that want one, too), buffers that the model changes,
        and the weights after `steps` steps of `optimizer(parameters)`, AdamW unless given: one that
        treats each element by itself, since simulated ranks step their shards. In float64, or in
        the model's own types with `precision="model"`. `tolerance` is relative: by default 1e-9 in
        float64, 1e-4 in float32, 3e-2 in half precision. The module's own state is left as it is.

        Returns a `Check`; with `raises`, raises VerificationError where it is not ok.
        """
        kwargs = {} if kwargs is None else kwargs
        check_arguments(args, kwargs)
        if precision not in ("float64", "model"):
            raise InputError(f"precision must be 'float64' or 'model', got {precision!r}.")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"steps must be a whole number of optimizer steps, got {steps!r}.")
        if steps and not self._request.setting.training:
            raise InputError(
                "this module was planned with training=False: it has no gradients to step with; "
                "plan with training=True, or verify with steps=0."
            )
        example: Example = (tuple(args), dict(kwargs))
        entry = self._entry_for_call(example)
        double = precision == "float64"
        coarsest = torch.float64 if double else _coarsest_type(entry.captured)
        if tolerance is None:
            tolerance = _TOLERANCES.get(coarsest, 3e-2)
        rounding = torch.finfo(coarsest).eps
        check = verify(self, entry, example, tolerance, double, rounding, steps, optimizer)
        if raises and not check.ok:
            raise VerificationError(f"{self._model_name} is not what was planned: {check}.", check)
        return check


def _options_of(plan: Plan, devices: int, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a plan was made with; ConfigError for those given that it contradicts."""
    decided = {
        "local_inputs": plan.local_inputs,
        "whole_outputs": plan.whole_outputs,
        "training": plan.training,
        "optimizer": plan.optimizer,
        "microbatches": plan.microbatches,
    }
    same_mesh = any(
        c.mesh == plan.mesh for c in mesh_choices(options.get("parallel"), None, devices)
    )
    for name in ("parallel", "preset", "hints"):
        if options.get(name) and not (name == "parallel" and same_mesh):
            raise ConfigError(
                f"{name}={options[name]!r} goes into making a plan, and plan= gives one that is "
                f"made; leave {name} out, or plan again with it."
            )
    defaults = {name: each.default for name, each in signature(make_request).parameters.items()}
    for name, value in decided.items():
        given = options.get(name, value)
        if given not in (value, defaults[name]):
            raise ConfigError(
                f"{name}={given!r}, but the plan was made with {name}={value!r}; leave it out, or "
                "plan again with it."
            )
    options = options | decided
    if options.get("memory") is None:
        options["memory"] = plan.memory_limit_bytes
    if options.get("cluster") is None:
        profile = load_profile(plan.cluster)
        options["cluster"] = Cluster(profile, devices, plan.devices_per_node)
    return options


_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def _coarsest_type(captured: Captured) -> torch.dtype:
    """The floating type of the fewest digits in which anything is computed."""
    values = [node.meta.get("val") for node in captured.graph.nodes]
    types = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return max(types, key=lambda each: torch.finfo(each).eps, default=torch.float64)


def parallelize(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    devices: int | None = None,
    plan: Plan | str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> ParallelModule:
    """A module that trains `model` on `devices` devices by a plan; see `autoplan.parallelize`."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"parallelize takes an nn.Module, got {model!r}; build the model first.")
    if isinstance(model, ParallelModule):
        raise ConfigError("the model is parallel already; parallelize the original one.")
    if isinstance(plan, (str, Path)):
        plan = load_plan(plan)
    elif plan is not None and not isinstance(plan, Plan):
        raise ConfigError(f"plan takes a Plan or the path of a plan file, got {plan!r}.")
    if devices is None:
        devices = plan.mesh.num_devices if plan is not None else world_size()
    if plan is not None and plan.mesh.num_devices != devices:
        raise ConfigError(
            f"the plan is for {plan.mesh.num_devices} devices, got devices={devices}; "
            "leave one of them out."
        )
    if plan is not None:
        options = _options_of(plan, devices, options)
    # A group that torchrun prepared is joined before planning: rank 0 plans for all.
    start_process_group(devices)
    refuse_hooks(model)
    module = ParallelModule(model, make_request(devices, **options), plan, seed)
    if args is not None or kwargs is not None:
        module.prepare(() if args is None else args, {} if kwargs is None else kwargs)
    return module
