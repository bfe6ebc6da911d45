"""Bounds: what no plan of a shape takes less than."""

from __future__ import annotations

from autoplan.capture import Captured
from autoplan.cost_models import Roofline, Work
from autoplan.mesh import Mesh
from autoplan.pricing import Setting, dtype_name
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.sites import describe
from autoplan.space.shapes import Shape
from autoplan.strategies.rule import OpCall, Rule


def compute_s(captured: Captured, request: Request, ranks: int) -> float:
    """Seconds that the ops of one microbatch take at least, spread evenly over `ranks`.

    Nothing is communicated, every product runs at the achievable rate, and memory is touched by the
    ranks in equal parts.
    """
    mesh = Mesh.of(ranks=ranks)
    model = Roofline(request.cluster, mesh)
    rules = rules_in_force()
    total = 0.0
    for node in captured.graph.nodes:
        if node.op != "call_function" or not str(node.target).startswith("aten."):
            continue
        call, _ = describe(node)
        rule = rules.get(call.op)
        if rule is None or rule.kind == "free" or not call.outputs:
            continue
        if rule.kind in ("matmul", "attention"):
            total += _product_s(model, call, rule, ranks, request.setting)
    return total


def _product_s(model: Roofline, call: OpCall, rule: Rule, ranks: int, setting: Setting) -> float:
    dtype = dtype_name(call.inputs[0])
    flops = rule.total_flops(call) / ranks
    forward = model.op_time_s(Work(rule.kind, flops, 0.0, dtype))  # type: ignore[arg-type]
    if not setting.training or not any(meta.requires_grad for meta in call.outputs):
        return forward
    factor = 2.5
    if rule.kind == "matmul":
        addends = rule.bound(call).addends
        needed = sum(m.requires_grad for i, m in enumerate(call.inputs) if i not in addends)
        factor = float(min(needed, 2))
    return forward + model.op_time_s(Work(rule.kind, factor * flops, 0.0, dtype))  # type: ignore[arg-type]


def pipeline_floor_s(work_s: float, shape: Shape) -> float:
    """Seconds of a step whose microbatches take `work_s` together, on the ranks of one stage.

    The busiest pipeline rank has at least the mean. Where each rank has one stage and a backward is
    whole, rank s waits for the stages before it, at the beginning and at the end of the step: with
    t_s seconds of a microbatch on stage s and T of all, no rank is done before
    t_0 + .. + t_(s-1) + m t_s, and the least that the largest of these can be is
    T / (1 - (1 - 1/m)^p).
    """
    if shape.pipeline is None:
        return work_s
    size, count = shape.size, shape.microbatches
    if shape.is_plain:
        return work_s / count / (1.0 - (1.0 - 1.0 / count) ** size)
    return work_s / size
