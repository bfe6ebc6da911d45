"""The original model on one device, made comparable: in float64, with keyed dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # torch >= 2.11

from autoplan.checkpoints import without_checkpoints
from autoplan.runtime.random import integers, keep_mask, normal, uniform
from autoplan.strategies.random import SMALLEST_EXPONENTIAL

_LOW = (torch.float32, torch.bfloat16, torch.float16)


class ReferenceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd: dropout draws by position; `double`: casts to lower precision keep float64.

    A `.float()` in the model would round. Dropout's masks, attention's too, come from one op,
    whoever calls it; the n-th call draws what the n-th random op of an emitted program draws.
    """

    def __init__(self, seed: int, step: int, double: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.step, self.double, self.calls = seed, step, double, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.double:
            args = tuple(torch.float64 if _is_low(each) else each for each in args)
            kwargs = {k: torch.float64 if _is_low(v) else v for k, v in kwargs.items()}
            if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(0.5)
                return func(_double(args[0]))
            if _makes_low_numbers(func, args, kwargs):
                kwargs["dtype"] = torch.float64
        if func is torch.ops.aten.native_dropout.default:
            keep = self._keep(args[0], args[1])
            return args[0] * (keep.to(args[0].dtype) / (1.0 - args[1])), keep
        name = func._schema.name.removeprefix("aten::")
        draw = _DRAWS.get(name.removesuffix("_"))
        if draw is None:
            return func(*args, **kwargs)
        # Drawn once by torch too, for shape and type.
        like = args[0] if name.endswith("_") else func(*args, **kwargs)
        numbers = draw(self, like, *args, *kwargs.values()).to(like.dtype)
        return like.copy_(numbers) if name.endswith("_") else numbers

    def _keep(self, x: Tensor, p: float) -> Tensor:
        # 1 - (1 - p) is p but for rounding.
        p = round(p, 12)
        return keep_mask(x.shape, p, x.shape, (0,) * x.ndim, self._key(), x.device)

    def uniform(self, like: Tensor) -> Tensor:
        whole = (0,) * like.ndim
        return uniform(like.shape, like.shape, whole, self._key(), like.dtype, like.device)

    def normal(self, like: Tensor) -> Tensor:
        whole = (0,) * like.ndim
        return normal(like.shape, like.shape, whole, self._key(), like.dtype, like.device)

    def integers(self, like: Tensor, low: int, high: int) -> Tensor:
        whole = (0,) * like.ndim
        return integers(like.shape, like.shape, whole, self._key(), low, high, like.device)

    def bernoulli(self, like: Tensor, p: Tensor | float) -> Tensor:
        if isinstance(p, Tensor):
            return self.uniform(like) < p
        return self._keep(like, 1.0 - p)

    def _key(self) -> tuple[int, ...]:
        """The key of the next call: the n-th draws what the n-th random op of a program draws."""
        key = (self.seed, self.calls, self.step)
        self.calls += 1
        return key


def _numbers_in(arguments: tuple[Any, ...]) -> list[Any]:
    return [each for each in arguments if type(each) in (int, float)]


def _with_defaults(given: list[Any], *defaults: float) -> list[Any]:
    """Trailing arguments that have their default are not dispatched."""
    return [*given, *defaults[len(given) :]]


def _uniform(mode: ReferenceMode, like: Tensor, *given: Any) -> Tensor:
    low, high = _with_defaults(_numbers_in(given), 0.0, 1.0)
    result: Tensor = mode.uniform(like) * (high - low) + low
    return result


def _normal(mode: ReferenceMode, like: Tensor, *given: Any) -> Tensor:
    mean, deviation = _with_defaults(_numbers_in(given), 0.0, 1.0)
    result: Tensor = mode.normal(like) * deviation + mean
    return result


def _integers(mode: ReferenceMode, like: Tensor, *given: Any) -> Tensor:
    bounds = _numbers_in(given)
    low, high = bounds if len(bounds) == 2 else (0, *bounds)
    return mode.integers(like, low, high)


def _exponential(mode: ReferenceMode, like: Tensor, *given: Any) -> Tensor:
    rate = _numbers_in(given)
    unit = (-torch.log1p(-mode.uniform(like))).clamp_min(SMALLEST_EXPONENTIAL)
    return unit / (rate[0] if rate else 1.0)


def _bernoulli(mode: ReferenceMode, like: Tensor, *given: Any) -> Tensor:
    """`bernoulli(probabilities)`, `bernoulli(x, p)` and their in-place forms."""
    p = [each for each in given[1:] if isinstance(each, (Tensor, float, int))]
    # In place p is 1/2 by default, and torch does not pass a default on.
    otherwise = 0.5 if like is given[0] else given[0]
    return mode.bernoulli(like, p[0] if p else otherwise)


_DRAWS: Mapping[str, Callable[..., Tensor]] = {
    "rand": _uniform,
    "rand_like": _uniform,
    "uniform": _uniform,
    "randn": _normal,
    "randn_like": _normal,
    "normal": _normal,
    "randint": _integers,
    "randint_like": _integers,
    "exponential": _exponential,
    "bernoulli": _bernoulli,
}


class _InDouble(TorchFunctionMode):
    """What a model in lower precision means, in float64.

    Products of rows grouped by expert, for which torch has no kernel; and what depends on the
    model's own type, `low`, by itself: the epsilon of a norm that is given none, and the rounding
    of a number that is made a tensor of that type.
    """

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.low is not None and func is F.rms_norm and kwargs.get("eps") is None:
            # Half precision is computed in float32.
            kwargs = {**kwargs, "eps": torch.finfo(torch.float32).eps}
        if self.low is not None and func is torch.tensor and kwargs.get("dtype") is torch.float64:
            return func(*args, **{**kwargs, "dtype": self.low}).double()
        if func is torch._grouped_mm and args[0].dtype == torch.float64:
            return _grouped_product(*args, **kwargs)
        return func(*args, **kwargs)


def _grouped_product(x: Tensor, weight: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rows [offs[e - 1], offs[e]) times the matrix of expert e; rows after the last are zero."""
    ends = [0, *offs.tolist()]
    parts = [x[a:b] @ w for a, b, w in zip(ends, ends[1:], weight, strict=False)]
    rest = x.new_zeros(x.shape[0] - ends[-1], weight.shape[-1])
    return torch.cat([*parts, rest])


def _makes_low_numbers(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an op makes numbers, of no tensor, in torch's default type."""
    if any(isinstance(each, Tensor) for each in (*args, *kwargs.values())):
        return False
    if "dtype" not in [argument.name for argument in func._schema.arguments]:
        return False
    return _is_low(func(*args, **{**kwargs, "device": torch.device("meta")}).dtype)


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _LOW


def materialize(
    structure: nn.Module, state: Mapping[str, Tensor], device: torch.device, double: bool = True
) -> nn.Module:
    """The model of `structure` with weights from `state`, ties kept; `double`: in float64."""
    convert = _double if double else torch.Tensor.detach
    memo: dict[int, Any] = {}
    for path, parameter in structure.named_parameters(remove_duplicate=False):
        if id(parameter) not in memo:
            value = convert(state[path].detach()).to(device, copy=True)
            memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for path, buffer in structure.named_buffers(remove_duplicate=False):
        memo[id(buffer)] = convert(state[path].detach()).to(device, copy=True)
    return copy.deepcopy(structure, memo)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def run_reference(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seed: int,
    step: int,
    double: bool = True,
    low: torch.dtype | None = None,
) -> Any:
    """The model's outputs with keyed dropout; `double`: in float64 throughout.

    `low`: the model's own type where it is not float64, which plans were made in.
    """
    with without_checkpoints([]), _InDouble(low), ReferenceMode(seed, step, double):
        return model(*args, **kwargs)
