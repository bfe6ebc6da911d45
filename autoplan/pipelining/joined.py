"""Join: what the stages of a pipeline are together, as rows of one plan and as a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoplan.errors import ConfigError
from autoplan.mesh import Mesh
from autoplan.pipelining.events import Run, Times, simulate
from autoplan.pipelining.schedules import Schedule, read_schedule
from autoplan.plan import Collective, OperationRow, Pipeline, Plan, StageRow, TensorRow


def joined_tensors(stages: Iterable[Plan]) -> tuple[TensorRow, ...]:
    """Rows of all stages by path: a module's of the stage that ends it, else the first."""
    kept: dict[str, TensorRow] = {}
    for stage in stages:
        for row in stage.tensors:
            if row.kind == "module" or row.path not in kept:
                kept[row.path] = row
    return tuple(kept.values())


def joined_operations(stages: Iterable[Plan]) -> tuple[OperationRow, ...]:
    """Every op of every stage."""
    return tuple(row for stage in stages for row in stage.operations)


def joined_collectives(
    stages: Iterable[Plan], sends: Iterable[Collective]
) -> tuple[Collective, ...]:
    """The collectives inside of stages, and what passes between them."""
    return (*(row for stage in stages for row in stage.collectives), *sends)


def joined_blocks(stages: Iterable[Plan]) -> tuple[str, ...]:
    """The blocks that backward computes again."""
    return tuple(block for stage in stages for block in stage.recomputed)


def joined_mesh(size: int, meshes: Sequence[Mesh]) -> Mesh:
    """All devices: the pipeline axis outermost, then those of a stage where all have them.

    Raises ConfigError where one of these is called pipeline, too.
    """
    stage = meshes[0]
    if any(mesh != stage for mesh in meshes):
        return Mesh.of(pipeline=size, rank=stage.num_devices)
    return Mesh(("pipeline", *stage.axes), (size, *stage.sizes))


def sends_of(plan: Plan) -> tuple[Collective, ...]:
    """What passes between stages: the collectives of a pipeline that no stage has."""
    inside = sum(len(stage.collectives) for stage in plan.stages)
    return plan.collectives[inside:]


def schedule_of(pipeline: Pipeline) -> Schedule:
    """The schedule itself."""
    chunks = len(pipeline.stages) // pipeline.size
    return read_schedule(pipeline.schedule, chunks)


def run_of(plan: Plan) -> Run:
    """A step of the plan's pipeline, simulated from its rows: it ends after `plan.step_time_s`."""
    if plan.pipeline is None:
        raise ConfigError("the plan has no pipeline, whose schedule could be run.")
    rows, size = plan.pipeline.stages, plan.pipeline.size
    orders = schedule_of(plan.pipeline).orders(size, plan.microbatches, not plan.training)
    return simulate(orders, times_of(rows, size))


def times_of(rows: Sequence[StageRow], size: int) -> Times:
    """What the rows say of each stage; a rank gathers, reduces and steps after its last event."""
    after = [0.0] * size
    for row in rows:
        after[row.rank] += row.once_s
    return Times(
        forward_s=[row.forward_s for row in rows],
        backward_s=[row.backward_s for row in rows],
        forward_transfer_s=[row.forward_transfer_s for row in rows[:-1]],
        backward_transfer_s=[row.backward_transfer_s for row in rows[:-1]],
        after_s=after,
    )
