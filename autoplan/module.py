"""The parallel module: a planned model that trains as the original does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.capture import Captured, check_arguments
from autoplan.config import cluster_of
from autoplan.errors import ConfigError, InputError, VerificationError
from autoplan.launch import (
    start_process_group,
    world_size,
)
from autoplan.parallel import mesh_choices
from autoplan.piped import PipedModule
from autoplan.pipelining.follow import with_pipeline_of
from autoplan.plan import Plan, load_plan
from autoplan.planned import Entry, StageEntry
from autoplan.refusals import refuse_hooks
from autoplan.request import make_request
from autoplan.runtime.batches import Example
from autoplan.runtime.leaves import backward
from autoplan.runtime.program import Constant
from autoplan.runtime.relay import Relay, Stored
from autoplan.runtime.stage_step import StageStep
from autoplan.verify import Check, MakeOptimizer, verify

if TYPE_CHECKING:
    from autoplan.trace.measured import Profile, Profiling


@dataclass(frozen=True)
class StepResult:
    """What `train_step` returns: the mean loss of the microbatches; more where asked for."""

    loss: Tensor
    outputs: tuple[Any, ...] | None = None
    profile: Profile | None = None


class _Feed:
    """What one stage takes of a module in a step, and what it leaves there."""

    def __init__(
        self,
        module: ParallelModule,
        stage: StageEntry,
        leaves: Sequence[Sequence[Any]],
        outputs: bool,
    ) -> None:
        self._module, self._stage, self._leaves, self._outputs = module, stage, leaves, outputs
        self.kept: dict[int, list[Any]] = {}

    def inputs(self, microbatch: int) -> list[Any]:
        """The changing buffers and the arguments of a microbatch."""
        return self._module._inputs(self._stage, self._leaves[microbatch])

    def take(self, microbatch: int, outputs: list[Any], buffers: list[Any]) -> None:
        """Keep the new buffers, and the outputs where they were asked for."""
        self._module._keep(self._stage, buffers)
        if self._outputs:
            with torch.no_grad():
                self.kept[microbatch] = self._module._outputs(self._stage, outputs)


class ParallelModule(PipedModule):
    """A model under a plan. Call it, call `backward`, step an optimizer, as with the original.

    Arguments and outputs are logical values; every rank sees the same loss. Parameters are DTensors
    in their storage layout under torch.distributed, logical tensors in simulation.
    """

    # -- running ----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs in its own structure, as logical values on every rank."""
        example: Example = (args, kwargs)
        grad = "with" if torch.is_grad_enabled() else "without"
        entry = self._entry_for_call(example, f"a call {grad} gradients{self._handling}")
        relay = self._relay(entry)
        flat: list[Any] = [None] * len(entry.owners)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._request.setting.training):
            stored, leaves = relay.begin(self._stored(entry), pytree.tree_leaves(example))
            for stage in entry.here:
                values = self._prologue(stage, stored)
                executor, program = self._executors[stage.rank], stage.programs[0]
                received = relay.receive(stage.number, program)
                executor.set_step(self._steps)
                inputs = [*values, *self._inputs(stage, leaves), *received]
                results = executor.run("body", stage.programs, inputs)
                outputs, sent, buffers = program.parted(results)
                self._keep(stage, buffers)
                relay.send(stage.number, program, sent)
                found = self._outputs(stage, outputs)
                mine = (n for n, owner in enumerate(entry.owners) if owner == stage.number)
                for position in mine:
                    flat[position] = found[position]
            self._steps += 1
            flat = relay.join(flat)
        return pytree.tree_unflatten(flat, entry.captured.out_spec)

    def _stored(self, entry: Entry) -> Stored:
        """Every parameter that is present here, once for each pipeline rank that reads it."""
        parameters = dict(self.named_parameters(remove_duplicate=False))
        taken: set[int] = set()
        stored: Stored = {}
        for stage in entry.here:
            executor = self._executors[stage.rank]
            for spec in stage.programs[0].parameters:
                if (stage.rank, spec.name) not in stored:
                    value = executor.stored(parameters[spec.name], spec.layout, taken)
                    stored[stage.rank, spec.name] = value
        for path, place in self._tied_here.items():
            ((rank, executor),) = self._executors.items()
            if (rank, path) not in stored:
                stored[rank, path] = executor.stored(parameters[path], place.layout, taken)
        return stored

    def _prologue(self, stage: StageEntry, stored: Stored) -> list[Any]:
        """What the body reads of parameters and constants."""
        executor, program = self._executors[stage.rank], stage.programs[0]
        buffers = dict(self.named_buffers(remove_duplicate=False))
        inputs = [stored[stage.rank, spec.name] for spec in program.parameters]
        for spec in program.state:
            given = buffers.get(spec.name)
            if given is None:
                given = stage.captured.constants[spec.name]
            inputs.append(executor.give(given, spec.layout))
        return self._run_prologue(stage, inputs)

    def _inputs(self, stage: StageEntry, leaves: Sequence[Any]) -> list[Any]:
        """The changing buffers and the flat arguments, as the body of a stage takes them."""
        executor, program = self._executors[stage.rank], stage.programs[0]
        held = dict(self.named_buffers(remove_duplicate=False))
        buffers = [executor.give(held[spec.name].clone(), spec.layout) for spec in program.updates]
        return buffers + [executor.give(leaves[at], spec.layout) for at, spec in program.inputs]

    @torch.no_grad()
    def _keep(self, stage: StageEntry, buffers: Sequence[Any]) -> None:
        """Let the module's buffers have the values that the body of a stage gave them."""
        executor = self._executors[stage.rank]
        held = dict(self.named_buffers(remove_duplicate=False))
        for spec, new in zip(stage.programs[0].updates, buffers, strict=True):
            held[spec.name].copy_(executor.take(new))

    def _outputs(self, stage: StageEntry, outputs: list[Any]) -> list[Any]:
        """Flat outputs of a stage, whole; plain values are None where another stage has them."""
        executor, program = self._executors[stage.rank], stage.programs[0]
        finals = executor.run("epilogue", stage.programs, outputs)
        return [
            each.value if isinstance(each, Constant) else executor.take(finals[each.position])
            for each in program.outputs
        ]

    def train_step(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        microbatches: int | None = None,
        outputs: bool = False,
        forward_only: bool = False,
        profile: bool = False,
    ) -> StepResult:
        """Forward and backward over microbatches; gradients add to `.grad`.

        The loss is the mean over microbatches, as of one batch with a mean loss; parameters are
        boxed once for all of them. `outputs` also gathers every output, one tree per microbatch;
        `forward_only` leaves the gradients alone. `profile` records when each rank does what, which
        takes time and changes no value: `result.profile.save_trace(path)` shows it beside the
        prediction. Raises InputError for a batch that does not divide, or a model without a scalar
        loss among its outputs.
        """
        self._settle_for(args, kwargs, microbatches)
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
        example: Example = (tuple(args), dict(kwargs))
        wanted = [] if forward_only else self._apart(example)
        if wanted:
            twins = {id(argument): twin for argument, twin in wanted}
            example = pytree.tree_map(lambda leaf: twins.get(id(leaf), leaf), example)
        parts = self._cut(example, count)
        asked = f"train_step(microbatches={count}, {outputs=}, {forward_only=}){self._handling}"
        asked += " with a profile" * profile
        entry = self._entry_for_call(parts[0], asked)
        if entry.loss is None and not self._request.setting.training:
            raise InputError(
                "this module was planned with training=False, which has no loss; call it, as in "
                "pm(...), or plan with training=True."
            )
        if entry.loss is None:
            raise InputError(
                f"{self._model_name} returned no scalar loss for these arguments; pass labels, or "
                "call the module and compute the loss yourself."
            )
        relay = self._relay(entry)
        flat = [pytree.tree_leaves(part) for part in parts]
        feeds = {stage.number: _Feed(self, stage, flat, outputs) for stage in entry.here}
        profiling = self._profiling(entry) if profile else None
        recording = nullcontext() if profiling is None else profiling.recording()
        with recording, torch.set_grad_enabled(not forward_only):
            stored, _ = relay.begin(self._stored(entry), ())
            steps = [
                StageStep(
                    self._executors[stage.rank],
                    stage.programs,
                    self._prologue(stage, stored),
                    feeds[stage.number],
                    number=stage.number,
                    microbatches=count,
                    first_step=self._steps,
                    grad=not forward_only,
                )
                for stage in entry.here
            ]
            del stored
            if profiling is not None:
                ranks = [stage.rank for stage in entry.stages]
                profiling.recorder.watch_steps(steps, ranks.__getitem__)
            self._run(entry, steps, count)
            self._steps += count
            if not forward_only:
                backward([relay.anchor, *(root for step in steps for root in step.roots())])
                self._give_gradients(wanted)
        loss = self._mean_loss(entry, steps)
        found = self._trees(entry, feeds, relay, count) if outputs else None
        return StepResult(loss, found, None if profiling is None else profiling.profile())

    def _profiling(self, entry: Entry) -> Profiling:
        from autoplan.trace.measured import Profiling

        return Profiling(entry.planned.plan, self._meshes, self._executors)

    def _run(self, entry: Entry, steps: Sequence[StageStep], count: int) -> None:
        """All microbatches, through one stage or as the schedule of a pipeline has it."""
        if len(entry.stages) > 1:
            self._run_schedule(entry, steps, count)
            return
        (step,) = steps
        for microbatch in range(count):
            step.forward(microbatch)
            if step.grad:
                step.backward(microbatch)

    def _mean_loss(self, entry: Entry, steps: Sequence[StageStep]) -> Tensor:
        """The mean over microbatches, known to the last stage, on every rank."""
        last = next((step for step in steps if step.number == len(entry.stages) - 1), None)
        loss = None
        if last is not None:
            loss = torch.stack([last.losses[each] for each in sorted(last.losses)]).mean()
        return self._everywhere(entry, loss)

    def _trees(
        self, entry: Entry, feeds: Mapping[int, _Feed], relay: Relay, count: int
    ) -> tuple[Any, ...]:
        """Every output, one tree per microbatch."""
        trees = []
        for microbatch in range(count):
            flat: list[Any] = [None] * len(entry.owners)
            for position, owner in enumerate(entry.owners):
                if owner in feeds:
                    flat[position] = feeds[owner].kept[microbatch][position]
            with torch.no_grad():
                flat = relay.join(flat)
            trees.append(pytree.tree_unflatten(flat, entry.captured.out_spec))
        return tuple(trees)

    # -- looking ----------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan in force, of the first form of arguments."""
        return self._first.planned.plan

    @property
    def code(self) -> str:
        """The emitted program of this rank (rank 0 in simulation) as annotated Python text."""
        stages = self._first.here
        if len(self._first.stages) == 1:
            return stages[0].programs[0].code
        return "\n\n".join(f"# stage {s.number}\n\n{s.programs[0].code}" for s in stages)

    def save_program(
        self,
        folder: str | Path,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Path, ...]:
        """Write the emitted programs as Python files that run without the model, and the weights.

        One readable file for every distinct program of a rank, which imports torch and autoplan's
        runtime alone; `run.py`, which starts all of them, by itself or under torchrun; every rank's
        shards. args, kwargs: a whole batch to be saved, too. Of the first form of arguments; every
        rank calls it, `folder` is one that all see. Returns the paths of what was written.
        """
        from autoplan.program_text.save import save_module

        return save_module(self, folder, args, kwargs)

    def _repr_html_(self) -> str:
        """The module in a notebook."""
        from autoplan.notebook.html import plan_or_error

        return plan_or_error(self)

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
        given = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
        if given and not any(leaf.numel() for leaf in given):
            raise InputError(
                "verify compares numbers, and no argument has any: all are empty tensors such as "
                f"{list(given[0].shape)}; give a batch with rows."
            )
        entry = self._entry_for_call(example, f"verify({precision=}, {steps=})")
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
    if options.get("recompute") not in (None, "auto"):
        raise ConfigError(
            f"recompute={options['recompute']!r} goes into making a plan, and plan= gives one that "
            "is made; leave recompute out, or plan again with it."
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
        options["cluster"] = cluster_of(plan, devices)
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
    request = make_request(devices, **options)
    if plan is not None:
        request = replace(request, space=None)
        if plan.pipeline is not None:
            request = with_pipeline_of(request, plan)
    module = ParallelModule(model, request, plan, seed)
    if args is not None or kwargs is not None:
        module.prepare(() if args is None else args, {} if kwargs is None else kwargs)
    return module
