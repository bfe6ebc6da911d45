"""Known schemes as hints: each preset is one function that binds one mesh axis.

data         batch split; each parameter is whole when it is read; stored whole or split
ddp          data, with parameters, gradients and optimizer state whole on every rank
fsdp         data, with parameters stored split; how often they are gathered is left to memory
zero1        fsdp, gathered and reduced once a step (Rajbhandari et al. 2020)
zero2        fsdp, gathered once a step, gradients reduced in every microbatch
zero3        fsdp, gathered and reduced in every microbatch, nothing kept whole in between
expert       data, with experts of mixtures split, and rows sent to theirs (Lepikhin et al. 2020)
1d           matrix products split over rows or columns of their weights (Shoeybi et al. 2019)
megatron     1d, with the activations between blocks whole
megatron-sp  1d, with the activations between blocks split along the sequence
             (Korthikanti et al. 2022)
2d-row, 2d-column
             both axes of a grid: products with weights by SUMMA (van de Geijn & Watts 1997)
2.5d-depth   beside those two: several such grids with the same weights (Wang et al. 2021)
3d-input, 3d-output, 3d-weight
             the axes of a cube (Agarwal et al. 1995); from product to product the first two
             change roles (Bian et al. 2021)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from autoplan.errors import ConfigError
from autoplan.hints import Hint
from autoplan.strategies.presets.data import data, ddp, fsdp, zero1, zero2, zero3
from autoplan.strategies.presets.expert import expert
from autoplan.strategies.presets.grids import (
    columns_2d,
    depth_25d,
    input_3d,
    output_3d,
    rows_2d,
    weight_3d,
)
from autoplan.strategies.presets.sequence import ring, ulysses
from autoplan.strategies.presets.tensor import megatron, megatron_sp, tensor_1d

if TYPE_CHECKING:
    from autoplan.capture import Captured

Preset = Callable[["Captured", str, int], Iterator[Hint]]

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "data": data,
        "ddp": ddp,
        "fsdp": fsdp,
        "zero1": zero1,
        "zero2": zero2,
        "zero3": zero3,
        "expert": expert,
        "1d": tensor_1d,
        "megatron": megatron,
        "megatron-sp": megatron_sp,
        "ulysses": ulysses,
        "ring": ring,
        "2d-row": rows_2d,
        "2d-column": columns_2d,
        "2.5d-depth": depth_25d,
        "3d-input": input_3d,
        "3d-output": output_3d,
        "3d-weight": weight_3d,
    }
)


def preset_hints(
    captured: Captured, schemes: Mapping[str, str], sizes: Mapping[str, int]
) -> tuple[Hint, ...]:
    """The hints of the scheme that each axis is bound to; ConfigError for an unknown name."""
    result: list[Hint] = []
    for axis, name in schemes.items():
        if name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"no preset is called {name!r}{meant}; there are {', '.join(PRESETS)}."
            )
        result.extend(PRESETS[name](captured, axis, sizes[axis]))
    return tuple(result)
