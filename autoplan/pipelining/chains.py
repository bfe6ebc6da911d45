"""The chain of a solved model: what each piece costs in seconds and bytes, for cutting it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import fx

from autoplan.found import Found
from autoplan.layouts import Layout
from autoplan.memory.liveness import timeline_of
from autoplan.pipelining.pieces import Pieces
from autoplan.pipelining.prices import Sending, by_piece, node_of, site_times, wire_layout
from autoplan.pipelining.splitting import crossing_values
from autoplan.pricing import FloatArray
from autoplan.sites import Annotated, Source, node_meta, tensor_of
from autoplan.solver.chain import Chain


def chain_of(
    found: Found,
    pieces: Pieces,
    sending: Sending,
    allowed: npt.NDArray[np.bool_],
    whole_outputs: bool = False,
) -> Chain:
    """The pieces of a model that is solved whole, on the mesh of one stage.

    Bytes are those of one microbatch. `allowed`: bool[pieces, stages].
    """
    annotated, count = found.annotated, len(pieces)
    times = site_times(annotated, found.solution.choices, found.pricer, whole_outputs)
    forward = by_piece(times.forward_s, annotated, pieces.of, count)
    backward = by_piece(times.backward_s, annotated, pieces.of, count)
    once_s = times.once_s.copy()
    for at, parameter in _parameter_of(annotated).items():
        if at != parameter:  # an op of the prologue, which is in no piece
            once_s[parameter] += once_s[at]
    once, shared_once = _of_parameters(once_s, annotated, pieces)
    once += by_piece(once_s, annotated, pieces.of, count)
    of_parameters, resident, kept, transient = _bytes(found, pieces)
    alone, shared = _of_parameters(of_parameters, annotated, pieces)
    crossing = crossing_bytes(found, pieces)
    sent = np.array([sum(sizes.values()) for sizes in crossing])
    entering = np.array([_made_in(crossing[i + 1], pieces, i) for i in range(count)])
    for readers, seconds in shared_once:
        once[readers[0]] += seconds
    back_and_forth = [
        sending.time_s(float(np.sum([*sizes.values()])))
        + sending.time_s(float(np.sum([s for n, s in sizes.items() if node_meta(n).requires_grad])))
        for sizes in crossing
    ]
    return Chain(
        time_s=forward + backward,
        recompute_s=forward,
        once_s=once,
        resident_bytes=resident + alone,
        kept_bytes=kept,
        kept_if_recomputed_bytes=np.minimum(entering, kept),
        transient_bytes=transient,
        working_bytes=np.maximum(kept - entering, 0.0),
        cut_s=np.array(back_and_forth),
        cut_bytes=sent,
        allowed=allowed,
        shared=tuple(shared),
    )


def wires_of(found: Found, pieces: Pieces) -> dict[str, Layout]:
    """How every value lies that some cut sends, as the model solved whole has it."""
    annotated, pricer = found.annotated, found.pricer
    wires: dict[str, Layout] = {}
    for nodes in crossing_values(annotated.captured, pieces):
        for node in nodes:
            if node.name not in wires:
                made, read = _ends(node, annotated, found.solution.choices, pieces)
                wires[node.name] = wire_layout(made, read, node_meta(node), pricer)
    return wires


def crossing_bytes(found: Found, pieces: Pieces) -> list[dict[fx.Node, float]]:
    """Bytes that a rank sends over a cut before each piece, by value; one more for the end."""
    wires = wires_of(found, pieces)
    return [
        {n: float(found.pricer.local_bytes(node_meta(n), wires[n.name])) for n in nodes}
        for nodes in crossing_values(found.annotated.captured, pieces)
    ]


def _ends(
    node: fx.Node, annotated: Annotated, choices: Sequence[int], pieces: Pieces
) -> tuple[Layout, Layout]:
    """How a value lies where it is made (or boxed for all), and where a later piece reads it."""
    source = annotated.values[tensor_of(node)]
    made = _chosen(annotated, choices, source)
    home = pieces.of[node.name]
    for at, site in enumerate(annotated.sites):
        if pieces.of.get(node_of(site), home) > home and source in site.inputs:
            candidate = site.candidates[choices[at]]
            return made, candidate.inputs[site.inputs.index(source)]
    return made, made


def _chosen(annotated: Annotated, choices: Sequence[int], source: Source) -> Layout:
    site = annotated.sites[source.site]
    return site.candidates[choices[source.site]].outputs[source.output]


def _made_in(sizes: dict[fx.Node, float], pieces: Pieces, piece: int) -> float:
    return sum(size for node, size in sizes.items() if pieces.of[node.name] == piece)


_Shared = list[tuple[tuple[int, ...], float]]


def _of_parameters(
    values: FloatArray, annotated: Annotated, pieces: Pieces
) -> tuple[FloatArray, _Shared]:
    """What parameters cost, summed over pieces: [pieces]; and of those that several read."""
    readers: dict[str, list[int]] = {}
    for piece, paths in enumerate(pieces.parameters):
        for path in paths:
            readers.setdefault(path, []).append(piece)
    total = np.zeros(len(pieces))
    shared: _Shared = []
    for at, site in enumerate(annotated.sites):
        if site.kind != "parameter" or not values[at]:
            continue
        reading = readers.get(site.path, [])
        if len(reading) == 1:
            total[reading[0]] += values[at]
        elif reading:
            shared.append((tuple(reading), float(values[at])))
    return total, shared


_RESIDENT = ("parameters", "optimizer", "gradients", "gathered")


def _bytes(found: Found, pieces: Pieces) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Bytes resident for each parameter's site, and for each piece; kept by each, and beside.

    The last are alive at the worst moment of a piece's own ops, and not kept for backward.
    """
    annotated, choices = found.annotated, found.solution.choices
    timeline = timeline_of(annotated, found.pricer)
    turn, count = len(annotated.sites), len(pieces)
    of_parameter, resident, kept = np.zeros(turn), np.zeros(count), np.zeros(count)
    beside = np.zeros((count, timeline.num_moments + 1))
    owner = _parameter_of(annotated)
    for term in timeline.terms:
        size = timeline.value(term, choices)
        piece = pieces.of.get(node_of(annotated.sites[term.site]))
        stays = term.kind in _RESIDENT and term.first <= turn <= term.last
        if stays and term.site in owner:
            of_parameter[owner[term.site]] += size
        elif piece is None:
            continue
        elif stays:
            resident[piece] += size
        elif term.first <= turn < term.last:
            kept[piece] += size
        else:
            beside[piece, term.first] += size
            beside[piece, term.last + 1] -= size
    return of_parameter, resident, kept, np.maximum(beside.cumsum(axis=1).max(axis=1), 0.0)


def _parameter_of(annotated: Annotated) -> dict[int, int]:
    """Site of the prologue -> the parameter that it is, or that it is first made of."""
    owner: dict[int, int] = {}
    for at, site in enumerate(annotated.sites):
        if site.kind == "parameter":
            owner[at] = at
        elif site.parameter_only:
            read = [owner[source.site] for source in site.inputs if source.site in owner]
            if read:
                owner[at] = read[0]
    return owner
