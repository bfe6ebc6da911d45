"""Describe: a solved problem as the plain data of a Plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from autoplan import ledger
from autoplan.capture import Captured
from autoplan.found import Found
from autoplan.hints.narrowing import unmet_preferences
from autoplan.hints.pins import PinPrice
from autoplan.layouts import local_shape
from autoplan.plan import FORMAT, Baseline, Certificate, OperationRow, Plan, TensorRow
from autoplan.planfiles.write import canonical
from autoplan.pricing import Pricer, dtype_name
from autoplan.recompute.pricing import SecondRuns
from autoplan.request import Request
from autoplan.sites import Annotated, Site, results_by_module, tensor_of
from autoplan.strategies.rule import OpCall


def module_paths(captured: Captured) -> list[str]:
    """Every module that owns a node, and the modules around it."""
    paths: dict[str, None] = {}
    for node in captured.graph.nodes:
        parts = str(node.meta.get("path", "")).split(".") if node.op == "call_function" else []
        for end in range(1, len(parts) + 1):
            if parts[0]:
                paths[".".join(parts[:end])] = None
    return list(paths)


def site_keys(annotated: Annotated) -> list[str]:
    """A name for every site that survives changes elsewhere in the model: path, op, number."""
    counts: dict[str, int] = {}
    keys: list[str] = []
    for site in annotated.sites:
        if site.kind == "sent":
            keys.append(f"sent {site.name.removesuffix(':sent')}")
            continue
        if site.kind == "received":
            keys.append(f"received {site.name}")
            continue
        if site.kind == "box":
            keys.append(f"{keys[site.inputs[0].site]}:{site.inputs[0].output}")
            continue
        if site.call is None:
            keys.append(f"{site.kind} {site.path}")
            continue
        op = site.call.op.removeprefix("aten.").split(".")[0]
        name = f"{site.path}/{op}"
        counts[name] = counts.get(name, 0) + 1
        keys.append(f"{name}#{counts[name]}")
    return keys


def describe_plan(
    found: Found,
    request: Request,
    model: str,
    baselines: tuple[Baseline, ...],
    pins: tuple[PinPrice, ...] = (),
) -> Plan:
    """The plain data of what a search found."""
    annotated, solution, pricer = found.annotated, found.solution, found.pricer
    keys = site_keys(annotated)
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, solution.choices, strict=True)]
    certificate = solution.certificate
    folded = certificate.folding
    unmet = unmet_preferences(annotated, solution.choices)
    second = SecondRuns.of(annotated, pricer)
    plan = Plan(
        format=FORMAT,
        model=model,
        axes=annotated.mesh.axes,
        sizes=annotated.mesh.sizes,
        cluster=request.cluster.profile.name,
        training=request.setting.training,
        optimizer=request.setting.optimizer,
        microbatches=request.setting.microbatches,
        memory_limit_bytes=request.memory_bytes,
        local_inputs=request.local_inputs,
        whole_outputs=request.whole_outputs,
        choices={
            key: str(candidate)
            for key, candidate, site in zip(keys, chosen, annotated.sites, strict=True)
            if site.kind in ("parameter", "op", "box")
        },
        tensors=tuple(_tensors(annotated, solution.choices)),
        operations=tuple(_operations(annotated, solution.choices, pricer, keys)),
        collectives=ledger.collectives(
            annotated, solution.choices, pricer, request.whole_outputs, found.recomputed
        ),
        memory=found.memory,
        devices_per_node=request.cluster.devices_per_node,
        step_time_s=found.step_time_s,
        recomputed=tuple(block.name for block in found.recomputed),
        recomputation_s=second.seconds(found.recomputed, solution.choices),
        certificate=Certificate(
            objective=certificate.objective,
            bound=certificate.bound,
            gap=certificate.gap,
            seconds=certificate.seconds,
            status=certificate.status,
            num_variables=len(annotated.sites),
            num_classes=folded.num_classes if folded else len(annotated.sites),
            num_binaries=certificate.num_binaries,
            folding_s=folded.cost_s if folded else 0.0,
        ),
        baselines=baselines,
        pins=pins,
        hints=tuple(dict.fromkeys(hint.origin for hint in found.hints)),
        notes=tuple(dict.fromkeys((*annotated.captured.notes, *annotated.notes, *unmet))),
    )
    return canonical(plan)


def signature(call: OpCall) -> str:
    """An op call in short: what its possible strategies depend on, and nothing else."""
    text = repr((call.op, call.args, sorted(call.kwargs.items()), call.inputs, call.outputs))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tensors(annotated: Annotated, choices: Sequence[int]) -> Iterator[TensorRow]:
    mesh = annotated.mesh
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
    rows: dict[str, TensorRow] = {}

    def add(path: str, kind: str, at: int, output: int, use: str = "") -> None:
        meta, candidate = annotated.sites[at].outputs[output], chosen[at]
        layout = candidate.storage if candidate.storage is not None else candidate.outputs[output]
        local = local_shape(meta.shape, layout, mesh)
        dtype, policy = dtype_name(meta), candidate.policy
        rows[path] = TensorRow(path, kind, dtype, meta.shape, local, str(layout), use, policy)

    for at, site in enumerate(annotated.sites):
        if site.kind == "parameter":
            add(site.path, "parameter", at, 0, str(chosen[at].outputs[0]))
        elif site.kind in ("input", "buffer"):
            source = annotated.values.get((site.name, 0))
            add(site.path, site.kind, source.site if source else at, 0)
    for alias, kept in annotated.captured.aliases.items():
        if kept in rows:
            rows[alias] = msgspec.structs.replace(rows[kept], path=alias, kind="parameter")
    results = results_by_module(annotated.captured)
    for path in module_paths(annotated.captured):
        if path in results and path not in rows:
            source = annotated.values[tensor_of(results[path][-1])]
            add(path, "module", source.site, source.output)
    for name, node in annotated.captured.named_outputs.items():
        source = annotated.values[tensor_of(node)]
        if name not in rows:
            add(name, "output", source.site, source.output)
    yield from rows.values()


def _operations(
    annotated: Annotated, choices: Sequence[int], pricer: Pricer, keys: Sequence[str]
) -> Iterator[OperationRow]:
    times: dict[Any, tuple[float, float]] = {}
    for at, site in enumerate(annotated.sites):
        if site.call is None:
            continue
        candidate = site.candidates[choices[at]]
        kind = (id(site.candidates), choices[at])
        if kind not in times:
            times[kind] = pricer.op_times_s(site, candidate)
        forward_s, backward_s = times[kind]
        runs = pricer.runs(site)
        yield OperationRow(
            keys[at],
            site.path,
            site.call.op,
            str(candidate),
            str(candidate.outputs[0]) if candidate.outputs else "",
            site.outputs[0].shape if site.outputs else (),
            runs * forward_s,
            runs * backward_s,
            has_rule(site),
            signature(site.call),
        )


def has_rule(site: Site) -> bool:
    """Whether the op can be split at all; ops on single numbers need no rule."""
    if site.call is None or (site.rule is not None and site.rule.applies(site.call)):
        return True
    return all(meta.numel <= 1 for meta in site.outputs)
