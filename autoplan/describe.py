"""Describe: a solved problem as the plain data of a Plan, and back to choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autoplan import ledger
from autoplan.capture import Captured
from autoplan.errors import PlanFileError
from autoplan.hints import Hint
from autoplan.layouts import local_shape
from autoplan.plan import FORMAT, Baseline, Certificate, Memory, OperationRow, Plan, TensorRow
from autoplan.pricing import Pricer, dtype_name
from autoplan.request import Request
from autoplan.sites import Annotated, Site, results_of, tensor_of
from autoplan.solver import Solution


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
    annotated: Annotated,
    solution: Solution,
    pricer: Pricer,
    request: Request,
    model: str,
    memory: Memory,
    baseline: Baseline,
    hints: Sequence[Hint],
) -> Plan:
    """The plain data of a solved problem."""
    keys = site_keys(annotated)
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, solution.choices, strict=True)]
    certificate = solution.certificate
    folded = certificate.folding
    return Plan(
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
        boxed=tuple(
            site.name
            for site in annotated.sites
            if site.kind == "box" and site.name in _asked(annotated, hints)
        ),
        tensors=tuple(_tensors(annotated, solution.choices)),
        operations=tuple(_operations(annotated, solution.choices, pricer, keys)),
        collectives=ledger.collectives(annotated, solution.choices, pricer, request.whole_outputs),
        memory=memory,
        devices_per_node=request.cluster.devices_per_node,
        step_time_s=certificate.objective,
        certificate=Certificate(
            objective=certificate.objective,
            bound=certificate.bound,
            gap=certificate.gap,
            seconds=certificate.seconds,
            status=certificate.status,
            num_variables=len(annotated.sites),
            num_classes=folded.num_classes if folded else len(annotated.sites),
            num_binaries=certificate.num_binaries,
        ),
        baseline=baseline,
        hints=tuple(dict.fromkeys(hint.origin for hint in hints)),
        notes=tuple(dict.fromkeys((*annotated.captured.notes, *annotated.notes))),
    )


def _asked(annotated: Annotated, hints: Sequence[Hint]) -> frozenset[str]:
    """Names of all boxing sites if some hint pins a value: such sites are there by request."""
    if not any(hint.at == "value" for hint in hints):
        return frozenset()
    return frozenset(site.name for site in annotated.sites if site.kind == "box")


def _tensors(annotated: Annotated, choices: Sequence[int]) -> Iterator[TensorRow]:
    mesh = annotated.mesh
    chosen = [s.candidates[c] for s, c in zip(annotated.sites, choices, strict=True)]
    rows: dict[str, TensorRow] = {}

    def add(path: str, kind: str, at: int, output: int, use: str = "") -> None:
        meta, candidate = annotated.sites[at].outputs[output], chosen[at]
        layout = candidate.storage if candidate.storage is not None else candidate.outputs[output]
        local = local_shape(meta.shape, layout, mesh)
        rows[path] = TensorRow(path, kind, dtype_name(meta), meta.shape, local, str(layout), use)

    for at, site in enumerate(annotated.sites):
        if site.kind == "parameter":
            add(site.path, "parameter", at, 0, str(chosen[at].outputs[0]))
        elif site.kind in ("input", "buffer"):
            source = annotated.values.get((site.name, 0))
            add(site.path, site.kind, source.site if source else at, 0)
    for alias, kept in annotated.captured.aliases.items():
        if kept in rows:
            row = rows[kept]
            rows[alias] = TensorRow(
                alias, "parameter", row.dtype, row.shape, row.local_shape, row.layout, row.use
            )
    for path in module_paths(annotated.captured):
        results = results_of(annotated.captured, path)
        if results and path not in rows:
            source = annotated.values[tensor_of(results[-1])]
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
        )


def has_rule(site: Site) -> bool:
    """Whether the op can be split at all; ops on single numbers need no rule."""
    if site.call is None or (site.rule is not None and site.rule.applies(site.call)):
        return True
    return all(meta.numel <= 1 for meta in site.outputs)


def choices_of(plan: Plan, annotated: Annotated, name: str = "the plan") -> tuple[int, ...]:
    """The candidates that `plan` names; PlanFileError where it does not fit the model."""
    result = []
    for key, site in zip(site_keys(annotated), annotated.sites, strict=True):
        if key not in plan.choices:
            if len(site.candidates) == 1:
                result.append(0)
                continue
            raise PlanFileError(f"{name} does not mention {key!r} of this model; plan again.")
        texts = [str(candidate) for candidate in site.candidates]
        if plan.choices[key] not in texts:
            raise PlanFileError(
                f"{name} says {plan.choices[key]!r} for {key!r}; this model allows "
                f"{', '.join(sorted(set(texts))[:8])}."
            )
        result.append(texts.index(plan.choices[key]))
    return tuple(result)
