"""Rules in force: those of `autoplan.strategies`, and those that users register for their own ops.

The registry is the one state that lives as long as the process: a plan depends on it as it depends
on the ops that a user's library defines. Every process registers for itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket  # torch >= 2.11; the types of torch.ops.*
from torch.utils import _pytree as pytree  # public use in torch.export's own docs

from autoplan.errors import RuleError
from autoplan.mesh import Mesh
from autoplan.proof import Experiment, Proof, observe, prove_on
from autoplan.strategies import RULES
from autoplan.strategies.notation import Bound, parse
from autoplan.strategies.rule import OpCall, Rule

MESHES = (Mesh.of(d=2), Mesh.of(d=3), Mesh.of(d=4), Mesh.of(d=5), Mesh.of(a=2, b=2))
"""Where a rule is proven: between them they cut most sizes evenly, unevenly, and with ranks that
are left without rows."""

_REGISTERED: dict[str, Rule] = {}


def rules_in_force() -> Mapping[str, Rule]:
    """The rule of every op that has one, by the name that the captured graph shows."""
    return MappingProxyType({**RULES, **_REGISTERED})


def register_rule(
    op: Any,
    rule: str | Callable[[OpCall], str | Bound | None] | Rule,
    *,
    examples: Sequence[tuple[Any, ...]] = (),
    replace: bool = False,
    **facts: Any,
) -> tuple[Proof, ...]:
    """Give an op its rule, so that plans may split it, and prove the rule on examples.

        autoplan.register_rule(
            torch.ops.mylib.project.default, "*b i, o i, +o -> *b o",
            sums=True, partial=({0}, {1}), saves=(0, 1), kind="matmul",
            examples=[(torch.randn(6, 5, 8), torch.randn(7, 8), torch.randn(7))],
        )

    op: an overload, a packet of one overload, what `torch.library.custom_op` returns, or the name
        in captured graphs, "mylib.project.default".
    rule: index notation (see `autoplan.strategies.notation`), a function from the call to notation,
        or a whole `Rule`, such as `discover_rule(...).rule`.
    facts: the other fields of `autoplan.strategies.rule.Rule`: `sums`, `partial`, `saves`, `kind`,
        `flops`, `program`, `needs_rows`, ...
    examples: calls to prove the rule on, each a tuple of arguments; a dict at its end holds keyword
        arguments. They run in float64; no gradient flows to an `nn.Buffer`.
    replace: whether the op may have a rule already.

    Returns the proof of every candidate, on meshes of 2, 3, 4, 5 and 2 x 2 devices. Raises
    RuleError, and registers nothing, if the rule cannot be read, if the op has one, or if a
    candidate is wrong: the first is named. Under torchrun every rank registers: rank 0 plans, and
    the others follow its plan by the same rules. So does whoever loads a plan.
    """
    overload = find_op(op)
    name = str(overload)
    if not replace and name in rules_in_force():
        raise RuleError(f"{name} has a rule; pass replace=True to put this one in its place.")
    made = make_rule(name, rule, facts)
    _check_arity(overload, made)
    proofs: list[Proof] = []
    for each in examples:
        if not isinstance(each, tuple):
            raise RuleError(
                f"examples of {name} must be calls, each a tuple of arguments, got "
                f"{type(each).__name__}; write examples=[(x, weight)]."
            )
        proofs += prove_call(example_call(overload, each), made)
    _REGISTERED[name] = made
    return tuple(proofs)


def unregister_rule(op: Any) -> None:
    """Take back what `register_rule` did; RuleError if it did nothing for this op."""
    name = str(find_op(op))
    if _REGISTERED.pop(name, None) is None:
        raise RuleError(f"no rule was registered for {name}.")


# -- ops and rules as users give them -------------------------------------------------------


def find_op(op: Any) -> OpOverload[Any, Any]:
    """The overload that `op` means; RuleError where it is none, several, or writes its inputs."""
    given = op
    if isinstance(op, str):
        op = torch.ops
        for part in given.replace("::", ".").split("."):
            op = getattr(op, part, None)
    op = getattr(op, "_opoverload", op)  # torch >= 2.11: what torch.library.custom_op returns
    if isinstance(op, OpOverloadPacket):
        overloads: list[str] = op.overloads()  # type: ignore[no-untyped-call]
        if len(overloads) != 1:
            raise RuleError(f"{op} has the overloads {', '.join(overloads)}; name one of them.")
        op = getattr(op, overloads[0])
    if not isinstance(op, OpOverload):
        raise RuleError(
            f"{given!r} is no op that torch knows; pass torch.ops.LIBRARY.NAME.default, after the "
            "library is imported."
        )
    if op._schema.is_mutable:
        raise RuleError(f"{op} writes its arguments; a rule is of an op that returns new tensors.")
    return op


def make_rule(
    name: str, rule: str | Callable[[OpCall], str | Bound | None] | Rule, facts: Mapping[str, Any]
) -> Rule:
    """A Rule of what a user gave; RuleError names a text or fact that cannot be read."""
    known = [each.name for each in fields(Rule)]
    for fact in facts:
        if fact not in known:
            close = difflib.get_close_matches(fact, known, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise RuleError(f"rule of {name}: {fact!r} is no field of a rule; {meant}")
    if isinstance(rule, Rule):
        if facts:
            raise RuleError(f"rule of {name}: pass either a Rule or notation with its facts.")
        return rule
    if isinstance(rule, str):
        parse(rule)
    given = dict(facts)
    for fact in ("program", "inner", "flops", "permits"):
        if given.get(fact) is not None and not callable(given[fact]):
            raise RuleError(f"rule of {name}: {fact} must be a function, got {given[fact]!r}.")
    partial = given.get("partial", ())
    if not callable(partial):
        try:
            given["partial"] = tuple(frozenset(carriers) for carriers in partial)
        except TypeError:
            raise RuleError(
                f"rule of {name}: partial must be sets of input positions, such as ({{0}}, {{1}}), "
                f"got {partial!r}."
            ) from None
    return Rule(rule, **given)


def _check_arity(op: OpOverload[Any, Any], rule: Rule) -> None:
    """A text must have a term for each tensor, where the op's schema says how many there are."""
    if not isinstance(rule.notation, str):
        return
    notation = parse(rule.notation)
    for what, terms, values in (
        ("inputs", notation.inputs, op._schema.arguments),
        ("outputs", notation.outputs, op._schema.returns),
    ):
        types = [str(value.type) for value in values]
        fixed = not any("Tensor" in each and each != "Tensor" for each in types)
        count = types.count("Tensor")
        if fixed and len(terms) != count:
            raise RuleError(
                f"rule {rule.notation!r} has {len(terms)} {what}, {op} has {count} tensors there."
            )


# -- proofs on example calls ----------------------------------------------------------------


@dataclass(frozen=True)
class ExampleCall:
    """An op and the arguments of a call, taken apart into tensors and all the rest."""

    op: OpOverload[Any, Any]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    tensors: tuple[Tensor, ...]

    def __call__(self, *tensors: Any) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.op(*args, **kwargs)


def example_call(op: OpOverload[Any, Any], arguments: tuple[Any, ...]) -> ExampleCall:
    """The call of `op` on positional arguments, and keyword arguments where a dict ends them."""
    kwargs = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    args = arguments[:-1] if kwargs or (arguments and arguments[-1] == {}) else arguments
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = tuple(_in_double(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    return ExampleCall(op, tuple(leaves), spec, tensors)


def _in_double(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x.detach()
    double = x.detach().double()
    return nn.Buffer(double) if isinstance(x, nn.Buffer) else double


def observe_call(call: ExampleCall) -> Experiment:
    """The whole op on its example; RuleError says why it cannot be run, or its gradient not be."""
    try:
        return observe(call, *call.tensors)
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RuleError(
            f"{call.op} could not be run on its example in float64, with its gradient: {text}. "
            "Give it a fake kernel and an autograd formula (torch.library), or pass what needs no "
            "gradient as nn.Buffer."
        ) from error


def prove_call(call: ExampleCall, rule: Rule) -> list[Proof]:
    """A proof of every candidate on every mesh; RuleError names the first that is wrong."""
    experiment, rules = observe_call(call), {str(call.op): rule}
    proofs = [proof for mesh in MESHES for proof in prove_on(mesh, experiment, rules)]
    wrong = [proof for proof in proofs if not proof.ok]
    if wrong:
        first = wrong[0]
        raise RuleError(
            f"{first}. ({len(wrong)} of {len(proofs)} candidates are wrong.) {_advice(first)}"
        )
    if not any(label not in ("B", "B/P") for proof in proofs for label in proof.labels):
        raise RuleError(
            f"the example of {call.op} proves nothing: its rule splits none of the shapes "
            f"{[tuple(x.shape) for x in call.tensors]}. Give it sizes of four or more."
        )
    return proofs


def _advice(wrong: Proof) -> str:
    labels = [label for label in wrong.labels if label not in ("B", "B/P")]
    if not labels:
        return "The op whole on every rank is wrong: it draws random numbers, or keeps state."
    if labels[0].startswith("P"):
        return "Take that set out of partial=: P passes only where the op is linear."
    return (
        f"Write [{labels[0]}] if that index must be whole on every rank, + before an argument that "
        "the result only adds, needs_rows=True if only shards without rows fail; or give the rule "
        "a program for its shards."
    )
