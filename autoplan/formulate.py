"""Formulate: the annotated graph becomes a pairwise cost problem, its repeats classes."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import numpy as np

from autoplan.pricing import Pricer
from autoplan.sites import Annotated, Site, Source
from autoplan.solver import Problem, ProblemBuilder

_SMALLEST_BLOCK = 8
"""Sites below which a repeated module is no block: layers in a row may choose differently."""


def formulate(annotated: Annotated, pricer: Pricer, whole_outputs: bool) -> Problem:
    """One variable a site, one matrix a tensor between two sites.

    `whole_outputs`: every output is brought to every rank and priced; otherwise only the loss is.
    """
    builder = ProblemBuilder()
    extra = _output_costs(annotated, pricer, whole_outputs)
    for wish in annotated.preferences:
        extra[wish.site] = extra.get(wish.site, 0.0) + np.array(wish.penalty_s)
    for at, site in enumerate(annotated.sites):
        cost = pricer.costs(site)
        builder.add_variable(site.name, cost + extra[at] if at in extra else cost)
    for at, site in enumerate(annotated.sites):
        for position, source in enumerate(site.inputs):
            origin = annotated.sites[source.site]
            meta = origin.outputs[source.output]
            matrix = pricer.edge(origin, source.output, site, position, meta)
            builder.add_edge(source.site, at, matrix)
    return builder.build()


def _output_costs(annotated: Annotated, pricer: Pricer, whole_outputs: bool) -> dict[int, Any]:
    costs: dict[int, Any] = {}
    for source, meta in priced_outputs(annotated, whole_outputs):
        vector = pricer.output_vector(annotated.sites[source.site], source.output, meta)
        costs[source.site] = costs.get(source.site, 0.0) + vector
    return costs


def priced_outputs(annotated: Annotated, whole_outputs: bool) -> list[tuple[Source, Any]]:
    """What a step brings to every rank: the loss, or all outputs if there is none, and buffers."""
    has_loss = annotated.loss is not None or annotated.captured.loss_elsewhere
    only_loss = has_loss and not whole_outputs
    outputs = [
        each
        for position, each in enumerate(annotated.outputs)
        if isinstance(each, tuple) and (not only_loss or position == annotated.loss)
    ]
    return outputs + [(source, meta) for _, source, meta in annotated.updates]


def repeated_blocks(annotated: Annotated) -> list[Hashable]:
    """A class for every site; sites of one class are the same node of repeated blocks.

    Blocks are modules under one numbered path (`layers.0`, `layers.1`, ...) whose sites agree in
    order, candidates and wiring inside the block.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for at, site in enumerate(annotated.sites):
        match = re.match(r"^(.*?(?:^|\.))(\d+)(?=\.|$)", site.path)
        if match:
            members.setdefault((match.group(1), match.group(2)), []).append(at)
    classes: list[Hashable] = list(range(len(annotated.sites)))
    kinds: dict[Hashable, int] = {}
    for (prefix, number), block in members.items():
        if len(block) < _SMALLEST_BLOCK:
            continue
        fingerprint = _fingerprint(annotated.sites, block, f"{prefix}{number}")
        kind = kinds.setdefault((prefix, fingerprint), block[0])
        for position, at in enumerate(block):
            classes[at] = (kind, position)
    return classes


def _fingerprint(sites: tuple[Site, ...], block: list[int], prefix: str) -> Hashable:
    """What two blocks must agree in; wiring is counted inside the block."""
    position = {at: i for i, at in enumerate(block)}
    return tuple(
        (
            site.kind,
            site.path.removeprefix(prefix),
            site.call.op if site.call is not None else "",
            id(site.candidates),
            tuple((position.get(source.site), source.output) for source in site.inputs),
        )
        for site in (sites[at] for at in block)
    )
