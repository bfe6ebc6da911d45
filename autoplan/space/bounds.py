"""Bounds: what no plan of a shape takes less than."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from autoplan.capture import Captured
from autoplan.cost_models import Cluster, Roofline, Work
from autoplan.cost_models.base import WorkKind
from autoplan.mesh import Mesh
from autoplan.pricing import backward_factor, dtype_name
from autoplan.registry import rules_in_force
from autoplan.sites import describe
from autoplan.space.shapes import Shape
from autoplan.strategies.rule import OpCall, Rule


@dataclass(frozen=True)
class Product:
    """A matrix product or attention: its work forward, and backward over forward (0 without)."""

    kind: WorkKind
    flops: float
    dtype: str
    backward: float


def products_of(captured: Captured, training: bool) -> Counter[Product]:
    """What takes the arithmetic of one microbatch, and how often.

    What depends on parameters alone runs once a step, and is left out.
    """
    rules = rules_in_force()
    found: Counter[Product] = Counter()
    known: dict[Any, Product | None] = {}
    kinds = {each.node: each.kind for each in captured.inputs}
    stored = {name for name, kind in kinds.items() if kind not in ("input", "received")}
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        if all(each.name in stored for each in node.all_input_nodes):
            stored.add(node.name)
            continue
        if str(node.target) not in rules:
            continue
        call, _ = describe(node)
        key = call.op, call.inputs, call.outputs, repr(call.args)
        if key not in known:
            known[key] = _product(call, rules[call.op], training)
        product = known[key]
        if product is not None:
            found[product] += 1
    return found


def _product(call: OpCall, rule: Rule, training: bool) -> Product | None:
    if rule.kind not in ("matmul", "attention") or not call.inputs:
        return None
    backward = 0.0
    if training and any(meta.requires_grad for meta in call.outputs):
        backward = backward_factor(call, rule, rule.kind)
    kind: WorkKind = "matmul" if rule.kind == "matmul" else "attention"
    return Product(kind, rule.total_flops(call), dtype_name(call.inputs[0]), backward)


def compute_s(products: Counter[Product], cluster: Cluster, ranks: int) -> float:
    """Seconds that the products of one microbatch take at least, spread evenly over `ranks`.

    Nothing is communicated, and all runs at the achievable rate.
    """
    model = Roofline(cluster, Mesh.of(ranks=ranks))
    total = 0.0
    for each, count in products.items():
        flops = each.flops / ranks
        seconds = model.op_time_s(Work(each.kind, flops, 0.0, each.dtype))
        if each.backward:
            seconds += model.op_time_s(Work(each.kind, each.backward * flops, 0.0, each.dtype))
        total += count * seconds
    return total


def pipeline_floor_s(work_s: float, shape: Shape, once: bool = False) -> float:
    """Seconds of a step whose microbatches take `work_s` together, on the ranks of one stage.

    `once`: what is paid once a step may be among it, which nobody waits for. The busiest pipeline
    rank has at least the mean. Where each rank has one stage and a backward is
    whole, rank s waits for the stages before it, at the beginning and at the end of the step: with
    t_s seconds of a microbatch on stage s and T of all, no rank is done before
    t_0 + .. + t_(s-1) + m t_s, and the least that the largest of these can be is
    T / (1 - (1 - 1/m)^p).
    """
    if shape.pipeline is None:
        return work_s
    size, count = shape.size, shape.microbatches
    if shape.is_plain and not once:
        return work_s / count / (1.0 - (1.0 - 1.0 / count) ** size)
    return work_s / size
