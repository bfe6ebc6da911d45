"""Known schemes as hints: each preset is one function that binds one mesh axis.

data         batch split; each parameter is whole when it is read; stored whole or split
ddp          data, with parameters, gradients and optimizer state whole on every rank
fsdp         data, with parameters stored split (ZeRO-3 storage, Rajbhandari et al. 2020)
1d           matrix products split over rows or columns of their weights (Shoeybi et al. 2019)
megatron     1d, with the activations between blocks whole
megatron-sp  1d, with the activations between blocks split along the sequence
             (Korthikanti et al. 2022)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from autoplan.errors import ConfigError
from autoplan.hints import Hint
from autoplan.strategies.presets.data import data, ddp, fsdp
from autoplan.strategies.presets.tensor import megatron, megatron_sp, tensor_1d

if TYPE_CHECKING:
    from autoplan.capture import Captured

Preset = Callable[["Captured", str, int], Iterator[Hint]]

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "data": data,
        "ddp": ddp,
        "fsdp": fsdp,
        "1d": tensor_1d,
        "megatron": megatron,
        "megatron-sp": megatron_sp,
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
