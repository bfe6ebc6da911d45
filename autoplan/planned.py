"""Planned modules: plans for every form of arguments, and parameters placed by the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch >= 2.11; torch.export documents its use

from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured, capture, check_arguments
from autoplan.emit import emit
from autoplan.errors import AutoplanError, ConfigError, InputError, PlanningStoppedError
from autoplan.hints import Hint
from autoplan.launch import agree_on_arguments, ctrl_c_ignored, distributed
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.pipelining.follow import adopt_pipeline, follow_pipeline
from autoplan.placed import Place
from autoplan.plan import Plan, decode_plan, encode_plan
from autoplan.planfiles.follow import adopt, follow
from autoplan.planning import (
    Planned,
    PlannedPipeline,
    Settled,
    check_local_inputs,
    plan_captured,
    settle,
)
from autoplan.recompute.emission import recompute_blocks
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.runtime.batches import Example, batch_size, whole_batch
from autoplan.runtime.batches import microbatches as cut_microbatches
from autoplan.runtime.program import Program
from autoplan.space.batches import Parts
from autoplan.space.captures import Captures
from autoplan.space.shapes import request_at
from autoplan.state import StatefulModule
from autoplan.strategies.random import is_random
from autoplan.strategies.rule import TensorMeta
from autoplan.structure import structure_of


@dataclass(frozen=True)
class StageEntry:
    """One stage: `programs` of its ranks that are present in this process, none elsewhere."""

    number: int
    rank: int
    """The pipeline rank that holds it."""
    planned: Planned
    programs: tuple[Program, ...]

    @property
    def captured(self) -> Captured:
        """The part of the model that it is."""
        return self.planned.annotated.captured


@dataclass(frozen=True)
class Entry:
    """The programs for one form of the arguments: shapes, types, values, train or eval mode."""

    planned: Planned | PlannedPipeline
    captured: Captured
    stages: tuple[StageEntry, ...]

    @property
    def loss(self) -> int | None:
        """The flat output that is the loss: of the last stage."""
        return self.stages[-1].planned.annotated.loss

    @property
    def owners(self) -> tuple[int, ...]:
        """The stage that makes each flat output."""
        if isinstance(self.planned, PlannedPipeline):
            return self.planned.split.owners
        return (0,) * len(self.captured.output_nodes)

    @property
    def here(self) -> tuple[StageEntry, ...]:
        """The stages that are present in this process."""
        return tuple(stage for stage in self.stages if stage.programs)

    @property
    def programs(self) -> tuple[Program, ...]:
        """Of the first stage that is present here."""
        return self.here[0].programs


class PlannedModule(StatefulModule):
    """A model that plans for every form of its arguments, its parameters placed by the first.

    Parameters are DTensors in their storage layout under torch.distributed, logical tensors in
    simulation, under the original model's paths.
    """

    def __init__(self, model: nn.Module, request: Request, plan: Plan | None, seed: int) -> None:
        super().__init__(model, seed)
        self._request = request
        self._given_plan = plan
        self._settled: Settled | None = None
        self._entries: dict[Any, Entry] = {}
        # Its structure without data, outside of nn.Module's registry, to be captured for every
        # form of arguments.
        self._structure: nn.Module
        object.__setattr__(self, "_structure", structure_of(model))
        self._seen: set[Any] = set()
        self._without_batch: dict[Any, frozenset[int]] = {}
        self.training = model.training

    def __setattr__(self, name: str, value: Any) -> None:
        structure = self.__dict__.get("_structure")
        plain = structure is not None and name in structure.__dict__ and name != "training"
        if plain and name not in self.__dict__ and not name.startswith("_"):
            raise ConfigError(
                f"{name!r} is an attribute of the model, whose value is part of the plan; set it "
                "on the original model, and parallelize that again."
            )
        placed = structure is not None and bool(self._executors)
        if placed and isinstance(value, (nn.Parameter, nn.Module)):
            raise ConfigError(
                f"{name!r}: a parallel module takes no new parameters or modules; add them to the "
                "original model, and parallelize that again."
            )
        super().__setattr__(name, value)

    # -- planning ---------------------------------------------------------------------------

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Plan and emit for arguments like these: the whole batch, or this rank's own part."""
        check_arguments(args, kwargs)
        example: Example = (tuple(args), dict(kwargs))
        if self._request.local_inputs:
            self._check_local_inputs()
            example = whole_batch(example, self._request.devices)
        self._settle(example)
        self._entry(self._cut(example, self._request.setting.microbatches)[0])

    def _settle_for(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, microbatches: int | None
    ) -> None:
        """Search what is open for the arguments of a step; given microbatches are not open."""
        space = self._request.space
        if space is None:
            return
        if microbatches is not None and space.microbatches is None:
            space = replace(space, microbatches=microbatches)
            self._request = replace(self._request, space=space)
        example: Example = (tuple(args), dict(kwargs or {}))
        if self._request.local_inputs:
            self._check_local_inputs()
            example = whole_batch(example, self._request.devices)
        self._settle(example)

    def _settle(self, example: Example) -> None:
        """Search what the request leaves open, for a whole batch: rank 0 does, all take it over."""
        if self._request.space is None:
            return
        captures = Captures(
            Parts(self._capture, example),
            batch_size(example) if self._request.space.microbatches is None else None,
            alike=not self._request.hints,
        )
        if not dist.is_initialized() or dist.get_world_size() == 1:
            self._settled = settle(captures, self._request)
            self._request = self._settled.request
            return
        box: list[Any] = [None]
        failure: BaseException | None = None
        if dist.get_rank() == 0:
            try:
                self._settled = settle(captures, self._request)
                box = [self._settled.shape]
            except AutoplanError as error:
                box = [error]
            except BaseException as error:  # nobody waits for a rank that is gone
                failure = error
                box = [PlanningStoppedError(f"rank 0 stopped planning: {error!r}.")]
        with ctrl_c_ignored(dist.get_rank() != 0):  # rank 0 takes the best so far
            dist.broadcast_object_list(box, src=0)
        if failure is not None:
            raise failure
        if isinstance(box[0], AutoplanError):
            raise box[0]
        self._request = request_at(self._request, box[0])

    def _cut(self, example: Example, count: int) -> list[Example]:
        """Microbatches; the graph of the whole batch says which arguments carry it."""
        if count == 1:
            return [example]
        key = self._key(example)
        if key not in self._without_batch:
            known = self._entries.get(key)
            captured = known.captured if known is not None else self._capture(example)
            self._without_batch[key] = arguments_without_batch(captured, rules_in_force())
        return cut_microbatches(example, count, self._without_batch[key])

    def _key(self, example: Example) -> Any:
        """What the captured graph depends on: arguments, modes of modules, trainable parameters."""
        leaves, spec = pytree.tree_flatten(example)
        self._follow()
        modes = tuple(module.training for module in self._structure.modules())
        trained = tuple(p.requires_grad for p in self._structure.parameters())
        return spec, modes, trained, tuple(_form(leaf) for leaf in leaves)

    def _parameters_in_force(self) -> Mapping[str, nn.Parameter]:
        if self._weights is not None:
            return dict(self._weights.named_parameters())
        held = dict(super().named_parameters(remove_duplicate=False))
        return {path: held[path] for path in self._places if path in held}

    def _follow(self) -> None:
        """Let the structure have the modes and trainable parameters that are in force here."""
        in_force = self._parameters_in_force()
        for path, parameter in self._structure.named_parameters():
            if path in in_force:  # another pipeline rank has the others
                parameter.requires_grad_(in_force[path].requires_grad)
        own = dict(self.named_modules()) if self._weights is None else {}
        for path, module in self._structure.named_modules(remove_duplicate=False):
            if path in own:
                module.training = own[path].training

    def _capture(self, example: Example) -> Captured:
        return capture(self._structure, *example, training=self._request.setting.training)

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode of the whole model; programs of either mode are kept."""
        super().train(mode)
        self._structure.train(mode)
        return self

    def _entry(self, example: Example, key: Any = None) -> Entry:
        """The programs for arguments like these, made where there are none; `key`: of `example`."""
        key = self._key(example) if key is None else key
        if key not in self._entries:
            self._entries[key] = self._make_entry(example)
        return self._entries[key]

    def _make_entry(self, example: Example) -> Entry:
        settled, self._settled = self._settled, None
        if settled is not None and not self._forms_match(settled, example):
            settled = None
        captured = self._capture(example) if settled is None else settled.captured
        if self._request.local_inputs:
            check_local_inputs(captured)
        planned = self._agree_on_plan(captured, settled)
        if not self._executors:
            self._place(_meshes(planned), _places(planned))
        sites = [site for stage in planned.stages for site in stage.annotated.sites]
        if any(site.call is not None and is_random(site.call) for site in sites):
            self._keep_random_position()
        ranks = _pipeline_ranks(planned)
        stages = tuple(
            StageEntry(number, rank, stage, self._emit(stage, rank))
            for number, (stage, rank) in enumerate(zip(planned.stages, ranks, strict=True))
        )
        return Entry(planned, captured, stages)

    def _emit(self, planned: Planned, pipeline_rank: int) -> tuple[Program, ...]:
        """The programs of the ranks that are present here."""
        executor = self._executors.get(pipeline_rank)
        return tuple(
            recompute_blocks(
                emit(
                    planned.annotated,
                    planned.choices,
                    planned.pricer.routers,
                    rank,
                    planned.plan.whole_outputs,
                ),
                planned.recomputed,
            )
            for rank in (executor.ranks if executor is not None else ())
        )

    def _forms_match(self, settled: Settled, example: Example) -> bool:
        """Whether a search has captured the model with arguments like these."""
        leaves = pytree.tree_leaves(example)
        known = settled.captured.leaves
        return len(leaves) == len(known) and all(
            tuple(leaf.shape) == meta.shape and leaf.dtype == meta.dtype
            for leaf, meta in zip(leaves, known, strict=True)
            if isinstance(leaf, Tensor) and isinstance(meta, TensorMeta)
        )

    def _agree_on_plan(
        self, captured: Captured, known: Settled | None = None
    ) -> Planned | PlannedPipeline:
        """Plan on rank 0 alone, and let all follow: a time limit may cut ranks differently."""
        plan = self._given_plan if not self._entries else None
        request = self._request
        if self._entries:
            request = self._with_places_held(request)

        def make() -> Planned | PlannedPipeline:
            if plan is not None and plan.pipeline is not None:
                return adopt_pipeline(captured, plan, request)
            if plan is not None:
                return adopt(captured, plan, request)
            if known is not None:
                found, tried = known.found, known.tried
                return plan_captured(captured, request, self._model_name, found, tried)
            return plan_captured(captured, request, self._model_name)

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return make()
        box: list[Any] = [None]
        planned: Planned | PlannedPipeline | None = None
        if dist.get_rank() == 0:
            try:
                planned = make()
                box = [encode_plan(planned.plan)]
            except AutoplanError as error:
                box = [error]
        dist.broadcast_object_list(box, src=0)
        failure: AutoplanError | None = None
        if isinstance(box[0], AutoplanError):
            failure = box[0]
        elif planned is None:
            try:
                found = decode_plan(box[0], "the plan of rank 0")
                follows = follow if found.pipeline is None else follow_pipeline
                planned = follows(captured, found, request)
            except AutoplanError as error:
                failure = error
        # Nobody goes on alone: a rank that cannot follow stops all of them with its own error.
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        for each in failures:
            if each is not None:
                raise each
        assert planned is not None
        return planned

    def _with_places_held(self, request: Request) -> Request:
        """The same request, of a module whose parameters have their places already."""
        trained = {path for path, form in self._forms.items() if form.is_parameter}
        places = {path: place for path, place in self._places.items() if path in trained}
        held = [
            Hint(path, "storage", _pins(self._meshes[place.homes[0]], place.layout), _HELD)
            for path, place in places.items()
        ]
        mesh = self._meshes[0]
        choice = next((c for c in request.meshes if c.mesh == mesh), MeshChoice(mesh))
        pipeline = request.pipeline
        if pipeline is not None:
            own = tuple((MeshChoice(each),) for each in self._meshes)
            stages = self._first.stages
            modules: dict[str, int] = {}
            for stage in stages:
                for node in stage.captured.graph.nodes:
                    if node.op == "call_function":
                        modules.setdefault(str(node.meta.get("path", "")), stage.number)
            homes = {
                path: tuple(stage.number for stage in stages if stage.rank in place.homes)
                for path, place in self._places.items()
            }
            known = self._first.planned.plan.pipeline
            assert known is not None
            pipeline = replace(
                pipeline,
                stage_map=None,
                meshes=own,
                held=modules,
                held_pieces=dict(zip(known.pieces, known.actual, strict=True)),
                homes=homes,
            )
        return replace(request, meshes=(choice,), held=tuple(held), pipeline=pipeline)

    @property
    def _first(self) -> Entry:
        self._live_executor  # noqa: B018  (raises where there is no plan)
        if not self._entries:
            raise InputError(
                "the module has no plan: planning failed; call it with other arguments."
            )
        return next(iter(self._entries.values()))

    def _entry_for_call(self, example: Example, asked: str) -> Entry:
        """The programs for a call; `asked` says which, and must be the same on all ranks."""
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(example)):
            raise InputError(
                "an argument is on the meta device, without values; give real tensors."
            )
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise InputError(
                "torch.autocast is on around a parallel module, whose types are planned; write it "
                "inside the model's forward, or cast the model, e.g. model.to(torch.bfloat16)."
            )
        if self._request.local_inputs:
            self._check_local_inputs()
        if self._request.space is not None:
            whole = whole_batch(example, self._request.devices)
            self._settle(whole if self._request.local_inputs else example)
        key = self._key(example)
        known, local = key in self._seen, self._request.local_inputs
        agree_on_arguments(key[1:3], example, local, known, asked)
        self._seen.add(key)
        if self._request.local_inputs:
            entry = self._entry(whole_batch(example, self._request.devices))
        else:
            entry = self._entry(example, key)
        inputs = [each for stage in entry.stages for each in stage.captured.inputs]
        self._ready(each.path for each in inputs if each.kind in ("parameter", "buffer"))
        return entry

    def __deepcopy__(self, memo: Any) -> PlannedModule:
        raise ConfigError(
            "a parallel module cannot be copied; copy the original model and parallelize that."
        )

    def _check_local_inputs(self) -> None:
        if not distributed():
            raise InputError(
                "local_inputs=True needs real ranks, each with its own part of the batch; run "
                "under torchrun, or give the whole batch to a simulated module."
            )


_HELD = "the layouts held"


def _pipeline_ranks(planned: Planned | PlannedPipeline) -> tuple[int, ...]:
    """The pipeline rank that holds each stage."""
    pipeline = planned.plan.pipeline
    return (0,) if pipeline is None else tuple(row.rank for row in pipeline.stages)


def _meshes(planned: Planned | PlannedPipeline) -> tuple[Mesh, ...]:
    """The mesh of every pipeline rank."""
    found = dict(zip(_pipeline_ranks(planned), planned.stages, strict=True))
    return tuple(found[rank].annotated.mesh for rank in sorted(found))


def _places(planned: Planned | PlannedPipeline) -> dict[str, Place]:
    """Where the parameters and buffers are that some stage reads."""
    found: dict[str, Place] = {}
    for rank, stage in zip(_pipeline_ranks(planned), planned.stages, strict=True):
        for site, choice in zip(stage.annotated.sites, stage.choices, strict=True):
            if site.kind in ("parameter", "buffer"):
                candidate = site.candidates[choice]
                layout = candidate.storage or candidate.outputs[0]
                known = found.setdefault(site.path, Place(layout, (rank,)))
                homes = tuple(dict.fromkeys((*known.homes, rank)))
                found[site.path] = replace(known, homes=homes)
    return found


def _pins(mesh: Mesh, layout: Layout) -> dict[str, frozenset[Any]]:
    return {axis: frozenset({entry}) for axis, entry in zip(mesh.axes, layout, strict=True)}


def _form(leaf: Any) -> Any:
    """What of an argument the captured graph depends on."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.requires_grad
    try:
        hash(leaf)
    except TypeError:
        raise InputError(
            f"an argument of type {type(leaf).__name__} cannot be planned for; pass tensors, "
            "numbers, texts, or containers of them."
        ) from None
    return type(leaf), leaf
