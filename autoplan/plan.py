"""The plan: what the planner found, as plain data that is saved, compared and reported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from autoplan.errors import LayoutError, PlanFileError
from autoplan.layouts import Layout
from autoplan.mesh import Mesh

FORMAT = "autoplan-plan/1"


class TensorRow(msgspec.Struct, frozen=True):
    """A parameter, argument or module result: logical shape, largest local shape, layout as text.

    `use` is the layout in which a step reads a parameter; `layout` the one it is stored in.
    """

    path: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    layout: str
    use: str = ""


class OperationRow(msgspec.Struct, frozen=True):
    """An op: its strategy by axis labels, its result's layout, its predicted seconds."""

    key: str
    path: str
    op: str
    choice: str
    layout: str
    shape: tuple[int, ...]
    forward_s: float
    backward_s: float
    has_rule: bool


class Collective(msgspec.Struct, frozen=True):
    """Collectives of one kind and size that a step runs at one place.

    `bytes` of one, counted on the largest rank before the axis cuts the tensor: the result of an
    all-gather, the operand of the others. `count` a step. `time_s`: predicted, of all together.
    `phase`: "prologue" once a step, "body" once a microbatch, "outputs" only when asked for.
    """

    kind: str
    bytes: int
    count: int
    axis: str
    path: str
    phase: str
    direction: str
    time_s: float


class Memory(msgspec.Struct, frozen=True):
    """Bytes alive at the predicted peak on the rank with the largest shards, by kind."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


class Certificate(msgspec.Struct, frozen=True):
    """What is proven: no plan of the search costs less than `bound`; `gap` is relative.

    `folding` says whether repeated blocks were held to one choice; the bound is of that problem.
    """

    objective: float
    bound: float
    gap: float
    seconds: float
    status: str
    num_variables: int
    num_classes: int
    num_binaries: int

    @property
    def folding(self) -> bool:
        return self.num_classes < self.num_variables


class Baseline(msgspec.Struct, frozen=True):
    """A known scheme priced by the same model; `note` says why where it cannot run."""

    name: str
    step_time_s: float | None
    peak_memory_bytes: int | None
    note: str = ""


class Plan(msgspec.Struct, frozen=True):
    """One plan. Layouts are text here; `layout(path)` reads them."""

    format: str
    model: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    cluster: str
    training: bool
    optimizer: str
    microbatches: int
    memory_limit_bytes: int
    local_inputs: bool
    whole_outputs: bool
    choices: dict[str, str]
    boxed: tuple[str, ...]
    """Graph nodes whose values are boxed for all readers because a hint pinned them."""
    devices_per_node: int | None
    tensors: tuple[TensorRow, ...]
    operations: tuple[OperationRow, ...]
    collectives: tuple[Collective, ...]
    memory: Memory
    step_time_s: float
    certificate: Certificate
    baseline: Baseline
    hints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mesh(self) -> Mesh:
        return Mesh(self.axes, self.sizes)

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

    def layout(self, path: str) -> Layout:
        """Layout of a parameter between steps, or of an argument's or module's value."""
        return Layout.parse(self.tensor(path).layout)

    def report(self) -> str:
        """The plan as text; see `autoplan.report`."""
        from autoplan.report import report

        return report(self)

    def explain(self, path: str) -> str:
        """What was chosen for a parameter, argument or module, what it costs, what it moves."""
        from autoplan.report import explain

        return explain(self, path)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON text, one line a field."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=1)
        Path(path).write_bytes(text + b"\n")

    def diff(self, other: Plan) -> str:
        """What differs from `other`, by path: layouts, predicted time and memory."""
        return _diff(self, other)


def load_plan(path: str | Path) -> Plan:
    """Read a plan that `Plan.save` wrote; PlanFileError for anything else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PlanFileError(f"cannot read plan file {str(path)!r}: {error.strerror}.") from error
    return decode_plan(data, str(path))


def decode_plan(data: bytes, name: str) -> Plan:
    """Read a plan from JSON text; `name` is for the error."""
    try:
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanFileError(
            f"{name!r} is not a plan file of autoplan, or is damaged: {error}."
        ) from error
    if plan.format != FORMAT:
        raise PlanFileError(
            f"{name!r} has the format {plan.format!r}, this version reads {FORMAT!r}; plan again."
        )
    return plan


def encode_plan(plan: Plan) -> bytes:
    return msgspec.json.encode(plan)


def _diff(one: Plan, other: Plan) -> str:
    lines = []
    if one.mesh != other.mesh:
        lines.append(f"mesh: {one.mesh} -> {other.mesh}")
    for name, unit, a, b in (
        ("step time", "ms", one.step_time_s * 1e3, other.step_time_s * 1e3),
        ("peak memory", "MB", one.peak_memory_bytes / 1e6, other.peak_memory_bytes / 1e6),
    ):
        if a != b:
            lines.append(f"{name}: {a:.3f} -> {b:.3f} {unit}")
    mine: Mapping[str, TensorRow] = {row.path: row for row in one.tensors}
    theirs = {row.path: row for row in other.tensors}
    for path in sorted(mine.keys() | theirs.keys()):
        a_row, b_row = mine.get(path), theirs.get(path)
        if a_row is None or b_row is None:
            lines.append(f"{path}: only in the {'second' if a_row is None else 'first'} plan")
        elif (a_row.layout, a_row.use) != (b_row.layout, b_row.use):
            lines.append(f"{path}: {_spell(a_row)} -> {_spell(b_row)}")
    return "\n".join(lines) if lines else "no difference"


def _spell(row: TensorRow) -> str:
    return f"{row.layout} read as {row.use}" if row.use and row.use != row.layout else row.layout
