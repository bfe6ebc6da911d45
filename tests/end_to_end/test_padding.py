"""Microbatches of models that address rows by number: each part of the batch on its own rows.

The truth is the original model on each part, for `verify` runs the whole batch.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import autoplan
from autoplan.batch import _numbered_along, arguments_without_batch
from autoplan.capture import capture
from autoplan.registry import rules_in_force
from autoplan.runtime.reference import run_reference
from autoplan.space.batches import Parts
from tests.end_to_end.training import errors, gradients
from tests.models import VOCABULARY, gpt2, language_batch, llama, loss_of

TOLERANCE = 1e-9

PLANS: dict[str, dict[str, Any]] = {
    "one device": {"devices": 1},
    "zero3": {"devices": 2, "preset": "zero3"},
    "pipeline": {"devices": 2, "parallel": {"pipeline": 2}},
}


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config).double().train()


MODELS = {
    "bert": bert,
    "llama": lambda: llama(num_hidden_layers=2),
    "gpt2": lambda: gpt2(n_layer=2),
}


def padded_batch(rows: int, length: int) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """Texts of different lengths, the rest of each row padding without labels."""
    (ids,), kwargs = language_batch(rows, length)
    lengths = torch.tensor([length, length - 3, 2, length - 1, 3, length - 2, 4, 1])[:rows]
    mask = (torch.arange(length) < lengths[:, None]).long()
    labels = kwargs["labels"].where(mask.bool(), -100)
    labels[:, 0] = 0
    labels[:, 1] = 1  # a row of length 1 has one for the next token, too
    return (ids,), {"labels": labels, "attention_mask": mask}


def check_parts(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    count: int,
    whole: tuple[int, ...] = (),
    **options: Any,
) -> None:
    """Loss and gradients of a step are the mean of those of the original on each part.

    Positional arguments in `whole` are given to every part.
    """
    original = copy.deepcopy(model)
    if hasattr(original, "config"):
        original.config.use_cache = False
    options = {"devices": 1, "cluster": "cpu", **options}
    module = autoplan.parallelize(model, args, kwargs, microbatches=count, **options)
    step = module.train_step(args, kwargs)
    losses = []
    for part in range(count):
        cut = tuple(
            each if place in whole else each.chunk(count)[part] for place, each in enumerate(args)
        )
        named = {name: each.chunk(count)[part] for name, each in kwargs.items()}
        loss = loss_of(run_reference(original, cut, named, 0, 0)) / count
        loss.backward()
        losses.append(float(loss.detach()))
    assert len(set(losses)) == count  # parts that can be told apart
    assert float(step.loss) == pytest.approx(sum(losses), rel=TOLERANCE)
    found, truth = gradients(module), gradients(original)
    largest = max(float(each.abs().max()) for each in truth.values())
    for path in [each for each in truth if each.endswith("key.bias")]:
        # Softmax takes no notice of what is added to all keys: the truth is 0, but for rounding.
        assert max(float(each.pop(path).abs().max()) for each in (found, truth)) < 1e-15 * largest
    assert max(errors(found, truth).values()) < TOLERANCE


@pytest.mark.parametrize(
    ("plan", "count"), [("one device", 2), ("one device", 4), ("zero3", 4), ("pipeline", 2)]
)
@pytest.mark.parametrize("name", MODELS)
def test_padding_masks_are_cut(name: str, plan: str, count: int) -> None:
    torch.manual_seed(0)
    check_parts(MODELS[name](), *padded_batch(8, 10), count, **PLANS[plan])


@pytest.mark.parametrize("name", MODELS)
def test_padding_masks_as_long_as_the_batch(name: str) -> None:
    torch.manual_seed(0)
    check_parts(MODELS[name](), *padded_batch(8, 8), 2)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_a_part_is_captured_with_its_mask(name: str, count: int) -> None:
    """Also parts of one row, which cannot say which dimension is the batch."""
    torch.manual_seed(0)
    model = MODELS[name]()
    parts = Parts(lambda example: capture(model, *example), padded_batch(8, 10))
    shapes = [each.meta.shape for each in parts(count).inputs_of("input")]
    assert shapes == [(8 // count, 10)] * 3


class Rows(nn.Module):
    """A layer, and a loss of its outputs by `of`, a function of them and of what else is given."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.linear, self.of = nn.Linear(8, 8, dtype=torch.float64), of

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        found: Tensor = self.of(self.linear(x), *rest)
        return found


def _number(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0])


def policy_gradient(x: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
    return -(x.log_softmax(-1)[_number(x), actions] * rewards).mean()


def flags(x: Tensor, keep: Tensor) -> Tensor:
    return (x * keep[_number(x)]).square().mean()


def repeated(x: Tensor, scale: Tensor) -> Tensor:
    twice = _number(x).repeat_interleave(2)
    return (x[:, None].expand(-1, 2, -1).flatten(0, 1) * scale[twice]).square().mean()


def selected(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale.index_select(0, _number(x))).square().mean()


def gathered(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale.gather(0, _number(x)[:, None].expand(x.shape))).square().mean()


def embedded(x: Tensor, scale: Tensor) -> Tensor:
    return (x * F.embedding(_number(x), scale)).square().mean()


def put(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    return (x + torch.zeros_like(x).index_put((_number(x), at), values)).square().mean()


def stacked(x: Tensor, scale: Tensor) -> Tensor:
    rows = [scale[i].square() for i in range(x.shape[0])]
    return (x * torch.stack(rows)).square().mean()


def joined(x: Tensor, scale: Tensor) -> Tensor:
    return (x * torch.cat([each.square() for each in scale.split(1)])).square().mean()


def summed(x: Tensor, scale: Tensor) -> Tensor:
    terms = [(row * by).square().mean() for row, by in zip(x, scale, strict=True)]
    return sum(terms[1:], terms[0]) / len(terms)


def positions(x: Tensor, table: Tensor) -> Tensor:
    """Entries of 8 positions, not of the rows."""
    return (x[:, :, None] * table[torch.arange(x.shape[1])]).square().mean()


def classes(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(x, y, weight)


def looked_up(x: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    return (x * F.embedding(ids, table)).square().mean()


def indexed(x: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    return (x * table[ids]).square().mean()


def terms(x: Tensor, weights: Tensor) -> Tensor:
    """As many terms of the loss as rows, each with a weight."""
    parts = [x[:, i].square().mean() * weights[i] for i in range(x.shape[1])]
    return torch.stack(parts).sum()


def draw(*kinds: str) -> tuple[Tensor, ...]:
    """Arguments of 8 rows: vectors, tables, numbers below 8, or flags."""
    torch.manual_seed(1)
    makers = {
        "vector": lambda: torch.rand(8, dtype=torch.float64) + 0.5,
        "table": lambda: torch.randn(8, 8, dtype=torch.float64),
        "numbers": lambda: torch.randint(0, 8, (8,)),
        "flags": lambda: torch.rand(8, 8) < 0.5,
    }
    return tuple(makers[kind]() for kind in kinds)


CASES: dict[str, tuple[Any, tuple[str, ...], tuple[int, ...]]] = {
    "policy gradient": (policy_gradient, ("table", "numbers", "vector"), ()),
    "flags": (flags, ("table", "flags"), ()),
    "repeated": (repeated, ("table", "table"), ()),
    "index_select": (selected, ("table", "table"), ()),
    "gather": (gathered, ("table", "table"), ()),
    "embedding": (embedded, ("table", "table"), ()),
    "index_put": (put, ("table", "numbers", "vector"), ()),
    "a loop, stacked": (stacked, ("table", "table"), ()),
    "a loop, joined": (joined, ("table", "table"), ()),
    "a loop, summed": (summed, ("table", "table"), ()),
    "positions": (positions, ("table", "table"), (1,)),
    "class weights": (classes, ("table", "numbers", "vector"), (2,)),
    "a table by data": (looked_up, ("table", "numbers", "table"), (2,)),
    "rows by data": (indexed, ("table", "numbers", "table"), (2,)),
    "weights of terms": (terms, ("table", "vector"), (1,)),
}
"""A loss, its arguments, and which of them, of the batch's size by chance, stay whole."""


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_rows_by_number(name: str, count: int) -> None:
    of, kinds, whole = CASES[name]
    model, args = Rows(of), draw(*kinds)
    captured = capture(model, args)
    assert arguments_without_batch(captured, rules_in_force()) == frozenset(whole)
    check_parts(model, args, {}, count, whole)


@given(
    st.integers(2, 4), st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3), st.data()
)
def test_numbers_along_a_dimension(rows: int, shape: list[int], data: st.DataObject) -> None:
    """The dimension is found for which each value is its own place along it."""
    size = torch.Size(shape).numel()
    dims = [each for each in range(len(shape)) if shape[each] == rows]
    if dims and data.draw(st.booleans()):
        along = data.draw(st.sampled_from(dims))
        index = torch.arange(rows).reshape([-1 if i == along else 1 for i in range(len(shape))])
        index = index.expand(shape)
    else:
        values = st.lists(st.integers(0, rows - 1), min_size=size, max_size=size)
        index = torch.tensor(data.draw(values)).reshape(shape)
    places = torch.cartesian_prod(*map(torch.arange, shape)).reshape(size, len(shape))
    expected = [
        dim for dim in dims if all(int(index[tuple(place)]) == place[dim] for place in places)
    ]
    found = _numbered_along(index, rows)
    assert expected == ([] if found is None else [found])
