"""The plan: what the planner found, as plain data that is saved, compared and reported."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from autoplan.errors import ConfigError, LayoutError, PlanFileError
from autoplan.hints.pins import PinPrice
from autoplan.layouts import Layout
from autoplan.mesh import Mesh
from autoplan.policies import Policy

if TYPE_CHECKING:
    from autoplan.notebook.figure import Figure
    from autoplan.trace.measured import Profile
    from autoplan.why.frontier import Frontier
    from autoplan.why.origin import Origin
    from autoplan.why.sensitivity import Sensitivity

FORMAT = "autoplan-plan/2"

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class TensorRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter, argument or module result: logical shape, largest local shape, layout as text.

    `use` is the layout in which a step reads a parameter; `layout` the one it is stored in;
    `policy` says when the one is made of the other.
    """

    path: str
    kind: str
    dtype: str
    shape: tuple[Count, ...]
    local_shape: tuple[Count, ...]
    layout: str
    use: str = ""
    policy: Policy = "step"


class OperationRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An op: its strategy by axis labels, its result's layout, its predicted seconds.

    `signature` tells the op from one of another kind, with other arguments, shapes or types.
    """

    key: str
    path: str
    op: str
    choice: str
    layout: str
    shape: tuple[Count, ...]
    forward_s: Seconds
    backward_s: Seconds
    has_rule: bool = True
    signature: str = ""


class Collective(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Collectives of one kind and size that a step runs at one place.

    `bytes` of one, counted on the largest rank before the axis cuts the tensor: the result of an
    all-gather, the operand of the others. `count` a step. `time_s`: predicted, of all together.
    `phase`: "prologue" once a step, "body" once a microbatch, "outputs" only when asked for.
    """

    kind: str
    bytes: Count
    count: Count
    axis: str
    path: str
    phase: str
    direction: str
    time_s: Seconds


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes alive at the predicted peak on the rank with the largest shards, by kind.

    `inputs` are arguments and buffers; `temporaries` live while an op, a collective or the
    optimizer runs. `moment` says when the peak is.
    """

    parameters: Count
    gradients: Count
    optimizer: Count
    gathered: Count
    activations: Count
    inputs: Count = 0
    temporaries: Count = 0
    moment: str = ""

    @property
    def total(self) -> int:
        kept = self.parameters + self.gradients + self.optimizer + self.gathered
        return kept + self.activations + self.inputs + self.temporaries


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is proven: no plan of the search costs less than `bound`; `gap` is relative.

    Repeated blocks were first held to one choice, `num_classes` of `num_variables`; `folding_s` is
    what that alone would have cost, and the bound is of the blocks as they are.
    `seconds` that the solver took are no part of a plan file: equal plans are equal files.
    """

    objective: Seconds
    bound: float
    gap: Seconds
    status: str
    num_variables: Count
    num_classes: Count
    num_binaries: Count
    folding_s: Seconds = 0.0
    seconds: Seconds = 0.0

    @property
    def folding(self) -> bool:
        return self.num_classes < self.num_variables


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A known scheme priced by the same model; `note` says why where it cannot run."""

    name: str
    step_time_s: Seconds | None = None
    peak_memory_bytes: Count | None = None
    note: str = ""


def stage_name(number: int, model: str) -> str:
    """What the plan of a pipeline's stage calls its part of the model."""
    return f"stage {number} of {model}"


class StageRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pipeline stage: what it holds, and its predicted seconds and bytes.

    `rank` is its place on the pipeline axis, which holds several stages under interleaved
    schedules; `ranks` are its devices. `forward_s`, `backward_s`, and the transfers (of what it
    passes on, and of its gradient back) are of one microbatch; `once_s` of gathering parameters,
    reducing gradients and the optimizer, of one step. `in_flight`: the most microbatches whose
    activations it holds at once. `rank_peak_memory_bytes` is of its rank, with all stages there,
    whose peaks need not fall together; every rank has the whole arguments.
    """

    rank: Count
    ranks: tuple[Count, ...]
    pieces: tuple[str, ...]
    forward_s: Seconds
    backward_s: Seconds
    forward_transfer_s: Seconds
    backward_transfer_s: Seconds
    once_s: Seconds
    in_flight: Count
    peak_memory_bytes: Count
    rank_peak_memory_bytes: Count = 0


class Pipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is cut into stages, and the schedule that runs them.

    `pieces` are the model's blocks and stray parts in order; `actual` and `automatic` are the stage
    of each, with the user's hints and without them. `bubble` is the part of the ranks' time in
    which they wait. `bound`: seconds below which no cut of these pieces goes, as the cut was
    chosen: at the prices of the model solved whole, with sum_s t_s + (m-1) max t_s for the time of
    a step. The schedule itself may take less.
    """

    schedule: str
    size: Count
    pieces: tuple[str, ...]
    actual: tuple[Count, ...]
    automatic: tuple[Count, ...]
    stages: tuple[StageRow, ...]
    bubble: float
    bound: float = 0.0

    @property
    def imbalance(self) -> float:
        """Seconds of the slowest rank's microbatch over the mean of all, less 1."""
        loads = [0.0] * self.size
        for stage in self.stages:
            loads[stage.rank] += stage.forward_s + stage.backward_s
            loads[stage.rank] += stage.forward_transfer_s + stage.backward_transfer_s
        mean = sum(loads) / len(loads)
        return max(loads) / mean - 1 if mean else 0.0


class ShapeRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shape that the search looked at: a pipeline, a mesh, microbatches.

    `at_least_s`: no plan of it takes less; `about_s`: its estimate, `step_time_s`: its best plan,
    0.0 where there is none.
    """

    shape: str
    status: str
    at_least_s: Seconds
    about_s: Seconds = 0.0
    step_time_s: Seconds = 0.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One plan. Layouts are text here; `layout(path)` reads them.

    A new field is written to plan files, among the figures, by its own name; give it a default, so
    that files without it are read.
    """

    format: str
    model: str
    axes: tuple[str, ...]
    sizes: tuple[Annotated[int, msgspec.Meta(ge=2, le=2**20)], ...]
    cluster: str
    training: bool
    optimizer: str
    microbatches: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    memory_limit_bytes: Count
    local_inputs: bool
    whole_outputs: bool
    choices: dict[str, str]
    tensors: tuple[TensorRow, ...]
    operations: tuple[OperationRow, ...]
    collectives: tuple[Collective, ...]
    memory: Memory
    step_time_s: Seconds
    certificate: Certificate
    baselines: tuple[Baseline, ...] = ()
    pins: tuple[PinPrice, ...] = ()
    devices_per_node: Annotated[int, msgspec.Meta(ge=1, le=2**20)] | None = None
    hints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    """Blocks that keep nothing for backward, which runs their forward a second time."""
    recomputation_s: Seconds = 0.0
    """What these second runs take of `step_time_s`."""
    pipeline: Pipeline | None = None
    stages: tuple[Plan, ...] = ()
    """Of a pipeline: the plan of every stage, on its own mesh; its choices are in them alone."""
    wires: dict[str, str] = {}
    """Of a stage: the layouts of the values that it receives and sends, by graph node."""
    num_shapes: Count = 0
    """Shapes that the search chose from; 0 where all was given."""
    shapes: tuple[ShapeRow, ...] = ()
    """The best of them."""
    config: dict[str, Any] = {}
    """Every option as it was resolved: `autoplan.plan(model, args, **plan.config)` asks for the
    same. Of a stage empty."""

    @property
    def mesh(self) -> Mesh:
        return Mesh(self.axes, self.sizes)

    @property
    def baseline(self) -> Baseline:
        """Plain data parallelism; on one device, the model as it is."""
        return self.baselines[0] if self.baselines else Baseline("data parallel")

    @property
    def peak_memory_bytes(self) -> int:
        """Predicted bytes at the peak, on the rank with the largest shards."""
        return self.memory.total

    @property
    def operations_without_rule(self) -> tuple[OperationRow, ...]:
        """Ops that run replicated because no rule says how to split them."""
        return tuple(row for row in self.operations if not row.has_rule)

    def tensor(self, path: str) -> TensorRow:
        """The row of a parameter, argument or module; LayoutError suggests the nearest path."""
        for row in self.tensors:
            if row.path == path:
                return row
        known = [row.path for row in self.tensors]
        near = difflib.get_close_matches(path, known, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise LayoutError(f"the plan has no parameter, argument or module {path!r}{meant}.")

    @property
    def scheme(self) -> str:
        """The known scheme that the plan is, axis by axis; see `autoplan.schemes`."""
        from autoplan.schemes import scheme_of

        return scheme_of(self).name

    @property
    def departures(self) -> tuple[str, ...]:
        """What of the plan is not as `scheme` says."""
        from autoplan.schemes import scheme_of

        return scheme_of(self).departures

    @property
    def stage_map(self) -> dict[str, int]:
        """The stage of each piece of the model, in order; without a pipeline empty."""
        if self.pipeline is None:
            return {}
        return dict(zip(self.pipeline.pieces, self.pipeline.actual, strict=True))

    def stage(self, path: str) -> int:
        """The stage that holds a parameter, module, argument or piece; of several the first.

        Without a pipeline all are on stage 0. LayoutError suggests the nearest path.
        """
        found = self.stage_map.get(path)
        if found is not None:
            return found
        for number, stage in enumerate(self.stages):
            if any(row.path == path for row in stage.tensors):
                return number
        self.tensor(path)
        return 0

    def layout(self, path: str) -> Layout:
        """Layout of a parameter between steps, or of an argument's or module's value."""
        return Layout.parse(self.tensor(path).layout)

    def report(self) -> str:
        """The plan as text; see `autoplan.report`."""
        from autoplan.report import report

        return report(self)

    def explain(self, path: str) -> str:
        """What was chosen for a module, parameter, argument or op, what it moves, and what else.

        Other choices are solved for anew, so that their step times are of whole plans. Raises
        LayoutError, with the nearest path, for one that the plan does not know.
        """
        from autoplan.why.explain import explain, explain_in_stages

        if self.stages:
            return explain_in_stages(self, path)
        return explain(self, self._origin, path)

    def sensitivity(self) -> Sensitivity:
        """At which bandwidth, compute rate, batch or memory another plan is faster; print it.

        Raises ConfigError for a plan that was read from a file and not loaded on its model, and for
        a pipeline, whose `stages` are asked one by one.
        """
        from autoplan.why.sensitivity import sensitivity

        self._refuse_pipeline("sensitivity()")
        return sensitivity(self, self._origin)

    def frontier(self, points: int = 8) -> Frontier:
        """Step time against memory, from this plan's down to the least that was found; print it.

        Raises ConfigError for a plan that was read from a file and not loaded on its model, and for
        a pipeline, whose `stages` are asked one by one.
        """
        from autoplan.why.frontier import frontier

        self._refuse_pipeline("frontier()")
        return frontier(self, self._origin, points)

    def _refuse_pipeline(self, what: str) -> None:
        if self.stages:
            raise ConfigError(
                f"{what} solves one stage again, and this plan is a pipeline of "
                f"{len(self.stages)}; ask a stage, as plan.stages[0].{what}."
            )

    @property
    def _origin(self) -> Origin | None:
        origin: Origin | None = self.__dict__.get("origin")
        return origin

    def remember(self, origin: Origin) -> Plan:
        """This plan, knowing what it was made from; no part of what is saved or compared."""
        self.__dict__["origin"] = origin
        return self

    def save(self, path: str | Path) -> None:
        """Write the plan as text to be read, edited and compared; see `planfiles.write`."""
        from autoplan.planfiles.write import write_plan

        try:
            Path(path).write_text(write_plan(self), encoding="utf-8", newline="\n")
        except OSError as error:
            raise PlanFileError(
                f"cannot write plan file {str(path)!r}: {error.strerror}."
            ) from error

    def save_trace(self, path: str | Path, measured: Profile | None = None) -> None:
        """Write the predicted step as a trace that ui.perfetto.dev and chrome://tracing open.

        measured: what `train_step(..., profile=True)` recorded, shown beside it. Raises ConfigError
        for a plan that was read from a file and not loaded on its model, PlanFileError where the
        file cannot be written.
        """
        from autoplan.trace.perfetto import save_trace
        from autoplan.trace.predicted import predicted

        beside = [] if measured is None else [measured.group()]
        save_trace(path, [predicted(self), *beside])

    def save_html(self, path: str | Path) -> None:
        """Write the plan as one HTML file, to be opened without network; see `autoplan.html`.

        A plan that knows its model is asked for alternatives, which takes some seconds; one that
        was read from a file says what it cannot know. Raises PlanFileError where `path` cannot be
        written.
        """
        from autoplan.html import write_html

        write_html(self, path)

    def save_program(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the programs of all ranks as Python files that run without the model.

        As `save_program` of the parallel module, without weights: give the model's state dict as
        `weights.pt`. Raises ConfigError for a plan that was read from a file and not loaded on its
        model.
        """
        from autoplan.program_text.save import save_program

        return save_program(self, folder)

    def _repr_html_(self) -> str:
        """The plan in a notebook."""
        from autoplan.notebook.html import plan_html

        return plan_html(self)

    def to_dataframe(self) -> Any:
        """Every tensor, op and collective as a row of a pandas DataFrame; see `notebook.frame`.

        Raises ConfigError where pandas is not installed.
        """
        from autoplan.notebook.frame import dataframe

        return dataframe(self)

    def figure(self) -> Figure:
        """Memory and timeline of a predicted step, which a notebook shows; `.save(path)`: as SVG.

        Raises ConfigError for a plan that was read from a file and not loaded on its model.
        """
        from autoplan.notebook.figure import figure

        return figure(self)

    def diff(self, other: Plan) -> str:
        """What `other` does differently: what was asked, decisions by path, time, memory, traffic.

        Decisions of repeated blocks are one line; "no difference" if there is none.
        """
        from autoplan.planfiles.diff import diff

        if not isinstance(other, Plan):
            raise PlanFileError(
                f"diff compares with another Plan, got {other!r}; read a file with load_plan."
            )
        return diff(self, other)


def load_plan(path: str | Path) -> Plan:
    """Read a plan that `Plan.save` wrote, as it is or edited; PlanFileError for anything else.

    All of the plan comes back but `certificate.seconds`.
    """
    from autoplan.planfiles.read import read_plan

    try:
        if not Path(path).is_file():
            Path(path).stat()  # says what is wrong, where it is not there
            raise PlanFileError(f"{str(path)!r} is no file; give the path of a plan file.")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise PlanFileError(
            f"cannot read plan file {str(path)!r}: {said}; check the path."
        ) from error
    return read_plan(data, str(path))


def decode_plan(data: bytes, name: str) -> Plan:
    """Read a plan that `encode_plan` wrote; `name` is for the error."""
    try:
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanFileError(f"{name!r} is not a plan of autoplan: {error}.") from error
    if plan.format != FORMAT:
        raise PlanFileError(
            f"{name!r} has the format {plan.format!r}, this version reads {FORMAT!r}; plan again."
        )
    return plan


def encode_plan(plan: Plan) -> bytes:
    """The plan as JSON, from rank to rank."""
    return msgspec.json.encode(plan)
