"""Which arguments carry the batch, read off the graph instead of guessed from sizes.

Dimensions that an op's rule calls by one index are one index: an argument of the batch's size
along dimension 0 may still hold features, and cutting it would be wrong without any error.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from autoplan.capture import Captured
from autoplan.sites import describe, tensor_of
from autoplan.strategies.rule import Rule

_Dim = tuple[str, int, int]
"""A dimension of a tensor: graph node, output, dimension."""


def arguments_without_batch(captured: Captured, rules: Mapping[str, Rule]) -> frozenset[int]:
    """Flat positions of tensor arguments whose dimension 0 is known not to be the batch.

    The batch is dimension 0 of the first tensor argument. An argument of the same size along
    dimension 0 counts as without it if the graph ties that dimension to others, none of them the
    batch, or to nothing although it has a rule for every op that reads it (class weights, say).
    What an op without a rule reads, or nothing at all, is left to its size.
    """
    arguments = [each for each in captured.inputs_of("input") if each.meta.shape]
    if not arguments:
        return frozenset()
    leader: dict[_Dim, _Dim] = {}

    def find(dim: _Dim) -> _Dim:
        while leader.get(dim, dim) != dim:
            dim = leader[dim]
        return dim

    for node in captured.graph.nodes:
        rule = rules.get(str(node.target)) if node.op == "call_function" else None
        if rule is None:
            continue
        call, operands = describe(node)
        bound = rule.bound(call)
        tensors = [tensor_of(each) for each in operands]
        tensors += [(node.name, output) for output in range(len(call.outputs))]
        first: dict[str, _Dim] = {}
        for (name, output), dims in zip(tensors, (*bound.inputs, *bound.outputs), strict=True):
            for number, index in enumerate(dims):
                if index is not None:
                    dim = (name, output, number)
                    leader[find(dim)] = find(first.setdefault(index, dim))
    read_blindly = {
        source.name
        for node in captured.graph.nodes
        if node.op == "call_function" and not _has_rule(node, rules)
        for source in node.all_input_nodes
    }
    read = {node.name for node in captured.graph.nodes if node.users}
    first_argument = min(arguments, key=lambda each: each.position)
    batch = find((first_argument.node, 0, 0))
    tied = {find(dim) for dim in leader if find(dim) != dim}
    return frozenset(
        each.position
        for each in arguments
        if each.node in read  # else left to its size
        and each.meta.shape[0] == first_argument.meta.shape[0]
        and find((each.node, 0, 0)) != batch
        and (find((each.node, 0, 0)) in tied or each.node not in read_blindly)
    )


def _has_rule(node: fx.Node, rules: Mapping[str, Rule]) -> bool:
    rule = rules.get(str(node.target))
    return rule is not None and rule.applies(describe(node)[0])
