"""Frame: every tensor, op and collective of a plan as one row of a table."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

from autoplan.errors import ConfigError
from autoplan.layouts import Layout, local_shape
from autoplan.plan import OperationRow, Plan, TensorRow
from autoplan.repeated import is_tied, kind_of
from autoplan.report_pipeline import located_collectives, located_tensors

COLUMNS = (
    "path", "kind", "layout", "use", "shape", "local_shape", "dtype", "bytes", "count", "time_s",
    "stage",
)  # fmt: skip
"""`kind`: of a tensor its own (parameter, input, module, ...), of an op its name, of a collective
its kind; "tied" is a parameter under a second name; the first one has its bytes. `bytes`: of
the largest local shard, of a collective as the plan counts one. `time_s`: of a step, forward and
backward, of all `count`; of collectives once a step, each bucket alone, where the step counts it as
a part of a full one. What does not apply is None."""


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    """Tensors, then ops, then collectives, each with its stage; see COLUMNS."""
    return [*_tensors(plan), *_operations(plan), *_collectives(plan)]


def dataframe(plan: Plan) -> Any:
    """The rows as a pandas DataFrame; ConfigError, with the fix, where pandas is not installed."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ConfigError(
            "to_dataframe() makes a pandas DataFrame, and pandas is not installed; run "
            "`pip install pandas`."
        ) from error
    return pandas.DataFrame(rows_of(plan), columns=list(COLUMNS))


def _row(**values: Any) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | values


def _tensors(plan: Plan) -> Iterator[dict[str, Any]]:
    for row, stage in located_tensors(plan):
        yield _row(
            path=row.path,
            kind=kind_of(plan, row, stage),
            layout=row.layout,
            use=row.use or None,
            shape=row.shape,
            local_shape=row.local_shape,
            dtype=row.dtype,
            bytes=None if is_tied(plan, row, stage) else _bytes(row),
            stage=stage,
        )


def _bytes(row: TensorRow) -> int:
    import torch

    dtype: torch.dtype = getattr(torch, row.dtype)
    return math.prod(row.local_shape) * dtype.itemsize


def _operations(plan: Plan) -> Iterator[dict[str, Any]]:
    for number, stage in enumerate(plan.stages or (plan,)):
        types = _types(stage)
        for row in stage.operations:
            local = _local(row, stage)
            dtype = types.get(row.key)
            yield _row(
                path=row.key,
                kind=row.op,
                layout=row.layout or None,
                shape=row.shape,
                local_shape=local,
                dtype=None if dtype is None else str(dtype).removeprefix("torch."),
                bytes=None if dtype is None or local is None else math.prod(local) * dtype.itemsize,
                time_s=row.forward_s + row.backward_s,
                stage=number,
            )


def _local(row: OperationRow, plan: Plan) -> tuple[int, ...] | None:
    if not row.layout:
        return None
    return tuple(local_shape(row.shape, Layout.parse(row.layout), plan.mesh))


def _types(plan: Plan) -> dict[str, Any]:
    """The type of each op's result, where the model is at hand."""
    if plan._origin is None:
        return {}
    question = plan._origin.question(plan)
    pairs = zip(question.keys, question.annotated.sites, strict=True)
    return {key: site.outputs[0].dtype for key, site in pairs if site.outputs}


def _collectives(plan: Plan) -> Iterator[dict[str, Any]]:
    for row, stage in located_collectives(plan):
        yield _row(
            path=row.path,
            kind=row.kind,
            layout=f"{row.axis}, {row.phase}, {row.direction}",
            bytes=row.bytes,
            count=row.count,
            time_s=row.time_s,
            stage=stage,
        )
