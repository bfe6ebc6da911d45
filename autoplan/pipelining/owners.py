"""Owners: which stage owns a module that several stages have ops of, and what ranks run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from autoplan.plan import Plan


def owner(path: str, stage_of: Mapping[str, int]) -> int | None:
    """The stage of the piece that a module is or lies in; of one around several, the last.

    `stage_of`: of each piece. None where no piece has to do with it.
    """
    around = path
    while around:
        if around in stage_of:
            return stage_of[around]
        around = around.rpartition(".")[0]
    inside = (stage for piece, stage in stage_of.items() if piece.startswith(f"{path}."))
    return max(inside, default=None)


def with_own_modules(stages: Sequence[Plan], stage_of: Mapping[str, int]) -> tuple[Plan, ...]:
    """The stages without rows of modules that another stage owns, where that one has them.

    A stage may run copies of another one's ops: its rows of their modules are no value of theirs.
    """
    paths = [{row.path for row in stage.tensors} for stage in stages]

    def is_own(path: str, number: int) -> bool:
        at = owner(path, stage_of)
        return at is None or at == number or path not in paths[at]

    return tuple(
        msgspec.structs.replace(
            stage,
            tensors=tuple(
                row for row in stage.tensors if row.kind != "module" or is_own(row.path, number)
            ),
        )
        for number, stage in enumerate(stages)
    )


def longest_recomputation_s(stages: Sequence[Plan], ranks: Sequence[int]) -> float:
    """Seconds of second runs in a step, on the pipeline rank that has most; `ranks` of the stages.

    Ranks run beside each other, so that those of several are no time of the step.
    """
    spent = dict.fromkeys(ranks, 0.0)
    for rank, stage in zip(ranks, stages, strict=True):
        spent[rank] += stage.recomputation_s
    return max(spent.values(), default=0.0)
