"""Rows 5, 21, 24 and 25 of the capability table: what they ask of hints, stage maps and configs.

What the planner, and real ranks, make of them is tested with the pipelines that run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autoplan import ConfigError, HintError
from autoplan.capture import Captured, capture
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.pipelining.stage_hints import allowed_stages
from autoplan.request import make_request
from autoplan.search import user_hints
from tests.models import gpt2, language_batch


@pytest.fixture(scope="module")
def shallow() -> Captured:
    args, kwargs = language_batch()
    return capture(gpt2(n_layer=4), args, kwargs)


@pytest.fixture(scope="module")
def deep() -> Captured:
    """24 blocks; on the meta device, since only the graph is looked at."""
    args, kwargs = language_batch()
    with torch.device("meta"):
        model = gpt2(n_layer=24)
    return capture(model, args, kwargs)


def fixed(captured: Captured, **options: Any) -> tuple[Pieces, dict[str, int]]:
    """The stages that are fixed, by piece."""
    request = make_request(8, "cpu", **options)
    assert request.pipeline is not None
    hints = user_hints(captured, request, request.meshes[0])
    pieces, stage_map = pieces_of(captured), request.pipeline.stage_map
    allowed, _ = allowed_stages(pieces, captured, hints, stage_map, request.num_stages)
    named = zip(pieces.names, allowed, strict=True)
    return pieces, {name: int(np.flatnonzero(on)[0]) for name, on in named if on.sum() == 1}


# -- 5: a layer, or a free parameter, placed on a stage -----------------------------------------


@pytest.mark.parametrize("stage", [-1, 3, "-1"])
def test_row_05_the_head_goes_to_the_last_stage(shallow: Captured, stage: Any) -> None:
    hints = {"lm_head": {"stage": stage}, "transformer.wpe.weight": "stage: 0"}
    pieces, found = fixed(shallow, parallel={"pipeline": 4}, hints=hints)
    assert found.pop("lm_head") == 3
    ((reader, first),) = found.items()
    assert first == 0
    assert "transformer.wpe.weight" in pieces.parameters[pieces.names.index(reader)]


def test_row_05_a_stage_that_the_plan_does_not_have(shallow: Captured) -> None:
    with pytest.raises(HintError, match=r"the plan has 4 stages.*0 to 3, or -4 to -1.*got 4"):
        fixed(shallow, parallel={"pipeline": 4}, hints={"lm_head": {"stage": 4}})


# -- 21: stage maps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stage_map"), [(4, [0] * 6 + [1] * 7 + [2] * 7 + [3] * 4), (2, [0, 0, 0, 1])]
)
def test_row_21_stage_maps_are_accepted(
    shallow: Captured, deep: Captured, size: int, stage_map: list[int]
) -> None:
    captured = shallow if len(stage_map) == 4 else deep
    parallel = {"pipeline": {"size": size, "stage_map": stage_map}}
    _, found = fixed(captured, parallel=parallel)
    assert found == {f"transformer.h.{i}": stage for i, stage in enumerate(stage_map)}


def test_row_21_a_map_of_another_model_is_refused(deep: Captured) -> None:
    parallel = {"pipeline": {"size": 2, "stage_map": [0, 0, 0, 1]}}
    with pytest.raises(HintError, match=r"has 4 entries, and the model has 24 blocks \('transf"):
        fixed(deep, parallel=parallel)


# -- 24, 25: the config ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "mesh", "size"),
    [
        ({"pipeline": {"size": 2}, "tensor": {"size": 4, "mode": "1d"}}, "tensor 4", 2),
        ({"pipeline": 2, "tensor": {"size": 4, "mode": "1d"}}, "tensor 4", 2),
        ({"pipeline": 2}, "data 4", 2),
        ({"pipeline": {"size": 2}}, "data 4", 2),
        ({"tensor": {"size": 4, "mode": "1d"}}, "data 2 x tensor 4", 1),
        ({}, "data 8", 1),
    ],
)
def test_row_24_either_part_or_all_left_out(parallel: Any, mesh: str, size: int) -> None:
    request = make_request(8, "cpu", parallel)
    assert [str(choice.mesh) for choice in request.meshes] == [mesh]
    assert (request.pipeline.size if request.pipeline else 1) == size


def test_row_24_nothing_at_all() -> None:
    request = make_request(8, "cpu", None)
    assert request.pipeline is None
    assert len(request.meshes) > 1


@pytest.mark.parametrize("beside", [{}, {"pipeline": 2}, {"pipeline": {"size": 2}}], ids=str)
def test_row_25_the_error_says_that_the_mode_is_missing(beside: Any) -> None:
    with pytest.raises(ConfigError, match=r"tensor=4 says no mode; write tensor=dict\(size=4, m"):
        make_request(8, "cpu", {"tensor": 4, **beside})
