"""Piped modules: a planned model whose stages may be on other ranks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use
from torch.utils.hooks import RemovableHandle

from autoplan.errors import ConfigError
from autoplan.launch import distributed
from autoplan.layouts import B, Layout
from autoplan.pipelining.joined import schedule_of
from autoplan.placed import Place as Held
from autoplan.planned import Entry, PlannedModule, StageEntry
from autoplan.runtime.batches import Example
from autoplan.runtime.handlers import GradientHandler, Unreduced, unreduced
from autoplan.runtime.links import Place, share
from autoplan.runtime.pipeline import pipeline_place, run_in_memory
from autoplan.runtime.program import Constant, TensorSpec
from autoplan.runtime.relay import InMemoryRelay, PeerRelay, Relay
from autoplan.runtime.stage_step import StageStep
from autoplan.sites import node_meta


class PipedModule(PlannedModule):
    """A planned module that runs its stages one after the other, or by its plan's schedule."""

    _pipeline_place: Place | None = None
    _runners: dict[str, Any]
    _handlers: Mapping[int, GradientHandler] = MappingProxyType({})
    """The gradient handler in force, by the id of its handle; none, or one."""
    _unreduced: Mapping[int, tuple[Unreduced, ...]] = MappingProxyType({})

    def register_gradient_handler(self, handler: GradientHandler) -> RemovableHandle:
        """Have `handler(path, gradient, reduce)` reduce every parameter's gradient; on every rank.

        Called once in a step's backward for each parameter that a gradient reaches, on each of its
        ranks, in place of the default reduction, over all microbatches. `gradient` is the rank's
        own local gradient as the step reads the parameter: in data parallelism, of its own part of
        the batch, whole, and not summed yet. It returns the rank's shard of the gradient as the
        parameter is stored; `reduce(gradient)` is the default: the sum, cut to the shard, and a
        collective, which all ranks call equally often. Where nothing is to be summed, `reduce` but
        turns the layout. A loss is a mean over the whole batch, and so the gradients are added.

        Stages that hold one parameter together each have it handled, and then add their gradients.
        What the plan reduces in every microbatch comes summed, and is a shard already. `remove()`
        of what is returned brings the default back. Raises ConfigError where there is a handler.

            pm.register_gradient_handler(lambda path, g, reduce: reduce(g.bfloat16()).to(g.dtype))
        """
        if not callable(handler):
            raise ConfigError(
                "a gradient handler is a function handler(path, gradient, reduce), got "
                f"{handler!r}."
            )
        if self._handlers:
            raise ConfigError(
                "there is a gradient handler already; remove it first, with the remove() of what "
                "register_gradient_handler returned."
            )
        handlers: OrderedDict[int, GradientHandler] = OrderedDict()
        handle = RemovableHandle(handlers)
        handlers[handle.id] = handler
        object.__setattr__(self, "_handlers", handlers)
        return handle

    @property
    def _handling(self) -> str:
        """What ranks must agree on: a handler on some alone would leave others waiting."""
        return " with a gradient handler" * bool(self._handlers)

    def _run_prologue(self, stage: StageEntry, inputs: Sequence[Any]) -> list[Any]:
        """What the body reads of parameters and state, as they are stored."""
        executor = self._executors[stage.rank]
        if not self._handlers:
            return executor.run("prologue", stage.programs, inputs)
        if id(stage) not in self._unreduced:
            made = tuple(unreduced(program) for program in stage.programs)
            object.__setattr__(self, "_unreduced", {**self._unreduced, id(stage): made})
        taken = self._unreduced[id(stage)]
        (handler,) = self._handlers.values()
        read = list(inputs)
        for number, spec in enumerate(stage.programs[0].parameters):
            steps = [each.steps[number] for each in taken]
            read[number] = executor.handled(read[number], spec.name, steps, handler)
        return executor.run("prologue", [each.program for each in taken], read)

    @property
    def _is_piped(self) -> bool:
        """Whether stages are on several real ranks."""
        return distributed() and len(self._meshes) > 1

    @property
    def _piped_place(self) -> Place:
        """This rank's place in the pipeline; collective where it is asked for first."""
        if self._pipeline_place is None:
            device = self._live_executor.device
            place = pipeline_place(len(self._meshes), self._ranks_per_stage, device)
            object.__setattr__(self, "_pipeline_place", place)
            object.__setattr__(self, "_runners", {})
        assert self._pipeline_place is not None
        return self._pipeline_place

    @property
    def _tied_here(self) -> dict[str, Held]:
        """Parameters that this rank and others hold; none in simulation, which has each once.

        Their gradients are summed over all who hold them, for every form of the arguments, also one
        for which a rank does not read its copy.
        """
        if not self._is_piped:
            return {}
        rank = self._piped_place.rank
        return {
            path: place
            for path, place in self._places.items()
            if self._forms[path].is_parameter and len(place.homes) > 1 and rank in place.homes
        }

    def _relay(self, entry: Entry, double: bool = False) -> Relay:
        """What carries values through all stages, once; `double`: floating ones in float64."""
        if not self._is_piped:
            return InMemoryRelay()
        ranks = tuple(stage.rank for stage in entry.stages)
        homes = {path: each.homes for path, each in self._places.items() if len(each.homes) > 1}
        outputs: list[tuple[int, TensorSpec] | Constant] = []
        for node, owner in zip(entry.captured.output_nodes, entry.owners, strict=True):
            if isinstance(node, fx.Node):
                outputs.append((ranks[owner], _whole(node, double)))
            else:
                outputs.append(Constant(node))
        return PeerRelay(self._piped_place, ranks, homes, outputs)

    def _run_schedule(self, entry: Entry, steps: Sequence[StageStep], count: int) -> None:
        """All microbatches, in the order of the plan's schedule."""
        pipeline, size = entry.planned.plan.pipeline, len(self._meshes)
        assert pipeline is not None
        schedule = schedule_of(pipeline)
        forward_only = not steps[0].grad
        schedule.check(size, count)
        if not self._is_piped:
            run_in_memory(schedule, steps, size, count, forward_only)
            return
        from autoplan.runtime.torch_stage import RankRunner  # torch's pipelining takes a second

        place = self._piped_place
        reason = schedule.refused(dist.get_backend(), torch.__version__)
        if reason is not None:
            raise ConfigError(reason)
        if schedule.name not in self._runners:
            self._runners[schedule.name] = RankRunner(schedule, place)
        self._runners[schedule.name].run(steps, count, forward_only)

    def _apart(self, example: Example) -> list[tuple[Tensor, Tensor]]:
        """Arguments that want a gradient, and twins for this rank's own share of it."""
        leaves = pytree.tree_leaves(example) if self._is_piped else []
        wanted = {id(e): e for e in leaves if isinstance(e, Tensor) and e.requires_grad}
        return [(each, each.detach().requires_grad_()) for each in wanted.values()]

    def _give_gradients(self, wanted: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Sum the shares of all stages, and hand them on to the arguments; collective."""
        for argument, twin in wanted:
            total = torch.zeros_like(twin) if twin.grad is None else twin.grad.contiguous()
            reached = torch.tensor(float(twin.grad is not None), device=total.device)
            for each in (reached, total):
                dist.all_reduce(each, group=self._piped_place.group)
            if reached.item():
                argument.backward(total)  # type: ignore[no-untyped-call]

    def _everywhere(self, entry: Entry, loss: Tensor | None) -> Tensor:
        """The loss, which the ranks of the last stage know, on every rank."""
        if self._is_piped:
            assert entry.loss is not None
            node = entry.captured.output_nodes[entry.loss]
            last = entry.stages[-1].rank
            return share(loss, last, self._piped_place, _whole(node, False))
        assert loss is not None
        return loss

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scale all gradients so that their norm together, over all stages, is at most `max_norm`.

        Returns the norm before. On a pipeline `torch.nn.utils.clip_grad_norm_` sees the stages of
        its own rank only, and would scale each by another factor. Collective; every parameter
        counts once, also one that several stages hold.
        """
        own = {p: g for p, g in self.named_parameters() if g.grad is not None}
        counted = [g.grad for path, g in own.items() if self._counts_here(path)]
        total = nn.utils.get_total_norm(counted, norm_type)
        total = total.full_tensor() if isinstance(total, DTensor) else total
        if self._is_piped:  # in one type, or copies of a parameter would drift apart
            total = total.to(self._live_executor.device, torch.float64)
            total = _combined(total, norm_type, self._piped_place)
        nn.utils.clip_grads_with_norm_(own.values(), max_norm, total)
        return total

    def _counts_here(self, path: str) -> bool:
        """Whether this process is the first that holds the parameter."""
        homes = self._places[self._forms[path].leader].homes
        return not self._is_piped or homes[0] == self._piped_place.rank


def _combined(norm: Tensor, norm_type: float, place: Place) -> Tensor:
    """The norm of all stages together, of those of each."""
    if norm_type == float("inf"):
        dist.all_reduce(norm, dist.ReduceOp.MAX, group=place.group)
        return norm
    power = norm**norm_type
    dist.all_reduce(power, group=place.group)
    result: Tensor = power ** (1.0 / norm_type)
    return result


def _whole(node: Any, double: bool) -> TensorSpec:
    """The form of an output, whole."""
    meta = node_meta(node)
    dtype = torch.float64 if double and meta.dtype.is_floating_point else meta.dtype
    return TensorSpec(node.name, meta.shape, dtype, Layout((B,)), meta.requires_grad)
