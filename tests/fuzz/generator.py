"""Random modules: a program of random ops on random shapes, as text and as an nn.Module."""

from __future__ import annotations

import linecache
import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.draft import NAMES, Draft, Program
from tests.fuzz.families import FAMILIES

Example = tuple[tuple[Any, ...], dict[str, Any]]


def random_module(
    seed: int, length: int = 12, rowwise: bool = False
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], Program]:
    """A module, its arguments, and its text; the same for the same numbers.

    `length`: lines of its `forward`. `rowwise`: ops that keep the rows of a batch apart, and a
    mean loss, so that it can be trained in microbatches.
    """
    for attempt in range(20):
        draw = random.Random(f"{seed} {attempt}")
        program = _random_program(draw, length, rowwise)
        while program is not None:
            module, (args, kwargs) = build(program)
            if _runs(module, args, kwargs):
                module, (args, kwargs) = build(program)
                return module, args, kwargs, program
            program = _without_a_write(program)
    raise AssertionError(f"no module of seed {seed} runs by itself")


def build(program: Program) -> tuple[nn.Module, Example]:
    """The module of a text, in train mode, and its arguments, the last by keyword."""
    names = dict(NAMES)
    file = f"<fuzzed {abs(hash(program.text))}>"
    linecache.cache[file] = (len(program.text), None, program.text.splitlines(True), file)
    torch.manual_seed(0)  # for layers that draw their own weights
    exec(compile(program.text, file, "exec"), names)
    module: nn.Module = names["Fuzzed"]()
    example: dict[str, Any] = names["example"]
    last = list(example)[-1:] if len(example) > 1 else []
    args = tuple(value for name, value in example.items() if name not in last)
    return module, (args, {name: example[name] for name in last})


def _random_program(draw: random.Random, length: int, rowwise: bool) -> Program | None:
    draft = Draft(draw, rowwise)
    torch.manual_seed(0)
    names = [name for name, each in FAMILIES.items() if each.rowwise or not rowwise]
    weights = [FAMILIES[name].weight for name in names]
    first = draft.shape()
    draft.argument(f"real({', '.join(map(str, (0, *first)))})")
    for _ in range(length * 4):
        if len(draft.statements) >= length:
            break
        name = draw.choices(names, weights)[0]
        _add_line(draft, name)
    if not draft.statements or not any(p.requires_grad for p in draft.module.parameters()):
        draft.attribute("self.w = nn.Parameter(real(0, 1))")
    if draft.chance(0.1):
        draft.attribute("self.unused = nn.Parameter(real(0, 3))")
    result = _result(draft)
    return Program(tuple(draft.attributes), dict(draft.arguments), tuple(draft.statements), result)


def _add_line(draft: Draft, name: str) -> None:
    """One more line, if the family finds tensors that fit and its values are tame."""
    family = FAMILIES[name]
    before = replace(draft, values=dict(draft.values), statements=list(draft.statements))
    expression = ""
    try:
        made = family.make(draft)
        if made is None:
            return
        expression, count = made if isinstance(made, tuple) else (made, 1)
        names = draft.names(count)
        if family.writes or expression.startswith("with "):
            draft.write(expression, name)
        elif not draft.write(f"{names} = {expression}", name):
            draft.write(f"{names} = torch.tanh({expression})", name)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        REFUSED.append((name, expression, str(error).splitlines()[0]))
        draft.values, draft.statements = before.values, before.statements


REFUSED: list[tuple[str, str, str]] = []
"""Lines that torch did not take: family, text, and what torch said."""


def _result(draft: Draft) -> str:
    """What is returned: a loss, outputs nobody reads, or both, in one structure or another."""
    read = set().union(*(each.reads for each in draft.statements)) if draft.statements else set()
    made = [name for name in draft.values if name.startswith("v")]
    real = [n for n in made if draft.values[n].is_floating_point()]
    other = [n for n in made if n not in real and draft.chance(0.4)]
    ends = [name for name in real if name not in read] or real[-1:]
    if draft.rowwise or draft.chance(0.5):
        terms = [f"{name}.{draft.choose(('square().mean', 'mean'))}()" for name in ends]
        trained = [n for n, each in draft.module.named_parameters() if each.requires_grad]
        terms.append(f"self.{trained[0]}.square().sum()")
        loss = " + ".join(terms)
        return draft.choose(
            (
                loss,
                f"{{'loss': {loss}, 'outputs': [{', '.join(ends[:2] + other)}]}}",
                f"({loss}, {', '.join(ends[:1] + other + ['None'])})",
            )
        )
    outputs = [*ends, *other, *([real[0]] if real and draft.chance(0.3) else [])]
    given = [*draft.arguments, *(f"self.{name}" for name in dict(draft.module.named_parameters()))]
    outputs += [draft.choose(given)] if draft.chance(0.1) else []
    if len(outputs) == 1:
        return draft.choose((outputs[0], f"({outputs[0]}, None)", f"{{'one': {outputs[0]}}}"))
    if not outputs:
        return f"{draft.choose(list(draft.arguments))} * self.w"
    half = len(outputs) // 2
    return draft.choose(
        (
            f"({', '.join(outputs)})",
            f"[{', '.join(outputs)}]",
            f"{{'a': ({', '.join(outputs[:half])},), 'b': [{', '.join(outputs[half:])}], 'c': 1}}",
        )
    )


def _without_a_write(program: Program) -> Program | None:
    """Autograd needs some values as they were: one line less that writes in place."""
    writes = [each for each in program.statements if FAMILIES[each.family].writes]
    if not writes:
        return None
    kept = tuple(each for each in program.statements if each is not writes[-1])
    return replace(program, statements=kept)


def _trained(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.clone().requires_grad_()
    return leaf


def _runs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether torch can run it, gradients of arguments too, and they are tame."""
    try:
        args, kwargs = torch.utils._pytree.tree_map(_trained, (args, kwargs))
        outputs = torch.utils._pytree.tree_leaves(module(*args, **kwargs))
        real = [e for e in outputs if isinstance(e, Tensor) and e.is_floating_point()]
        wanted = [each for each in real if each.requires_grad]
        if not wanted or not all(each.isfinite().all() for each in real):
            return False
        sum(each.sum() for each in wanted).backward()
    except (RuntimeError, ValueError):
        return False
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    return all(each.isfinite().all() and each.abs().max() < 1e4 for each in gradients)
