"""Peak memory of one plan: the bytes alive at the worst moment of a step."""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.memory.liveness import timeline_of
from autoplan.memory.schedule import Block
from autoplan.memory.timeline import Timeline
from autoplan.plan import Memory
from autoplan.pricing import Pricer
from autoplan.sites import Annotated


def peak_memory(
    annotated: Annotated,
    choices: Sequence[int],
    pricer: Pricer,
    recomputed: Sequence[Block] = (),
) -> Memory:
    """Bytes alive at the peak of a training step, by kind."""
    return memory_at_peak(timeline_of(annotated, pricer, recomputed), choices)


def memory_at_peak(timeline: Timeline, choices: Sequence[int]) -> Memory:
    """What is alive at the worst moment of `choices`."""
    peak = timeline.peak(choices)
    sizes = {kind: round(size) for kind, size in peak.kinds.items()}
    return Memory(
        parameters=sizes.get("parameters", 0),
        gradients=sizes.get("gradients", 0),
        optimizer=sizes.get("optimizer", 0),
        gathered=sizes.get("gathered", 0),
        activations=sizes.get("activations", 0),
        inputs=sizes.get("inputs", 0),
        temporaries=sizes.get("temporaries", 0),
        moment=timeline.name(peak.moment),
    )
