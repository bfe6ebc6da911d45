"""The moments of a step: when each site runs forward, backward, and again where it is recomputed.

In order: the prologue (moment 0); forward, site by site; backward in reverse, each recomputed block
running forward again before the first of its backward moments that needs what it keeps; then the
prologue's backward, and the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Block:
    """Sites that are recomputed together, in graph order; the block is that of module `name`.

    again: sites that run a second time: up to the last one that keeps something for backward.
    reading: a site that does not, but whose inputs are boxed a second time, since it keeps them.
    first, last: the sites between which something is kept for backward.
    """

    name: str
    sites: tuple[int, ...]
    again: tuple[int, ...]
    reading: frozenset[int]
    first: int
    last: int


@dataclass(frozen=True)
class Schedule:
    """`forward` and `backward`: the moment of each site. `moments`: what runs, from moment 1 on.

    `block`: recomputed site -> number of its block; `inputs_until`: of every block, the moment
    until which what it reads from outside is held. `again_at`: site -> moment of its second run.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    moments: tuple[tuple[str, int], ...]
    block: Mapping[int, int] = field(default_factory=dict)
    inputs_until: tuple[int, ...] = ()
    again_at: Mapping[int, int] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The last moment of backward."""
        return len(self.moments)

    @staticmethod
    def of(count: int, recomputed: Sequence[Block] = (), idle: Sequence[Block] = ()) -> Schedule:
        """The schedule of `count` sites; blocks `idle` have moments, too, at which nothing runs."""
        before = {block.last: block for block in (*recomputed, *idle)}
        moments = [("forward", at) for at in range(count)]
        for at in reversed(range(count)):
            if at in before:
                block = before[at]
                runs = sorted({*block.again, *block.reading})
                moments += [("recomputation", each) for each in runs]
            moments.append(("backward", at))
        numbered = {each: number for number, each in enumerate(moments, start=1)}
        return Schedule(
            tuple(numbered["forward", at] for at in range(count)),
            tuple(numbered["backward", at] for at in range(count)),
            tuple(moments),
            {at: number for number, block in enumerate(recomputed) for at in block.sites},
            tuple(numbered["backward", block.first] for block in recomputed),
            {at: moment for (doing, at), moment in numbered.items() if doing == "recomputation"},
        )

    def again(self, block: Block) -> Schedule:
        """The same moments as a block sees them when it runs again: its forward is then."""
        forward = tuple(self.again_at.get(at, moment) for at, moment in enumerate(self.forward))
        return replace(self, forward=forward, block={}, inputs_until=())
