"""`autoplan doctor`: what is installed, and what would work here, each tried on something tiny."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from autoplan.cli.command import DONE, NO, Result, described
from autoplan.progress import counting

Status = Literal["ok", "missing", "failed"]

_NEEDED = ("torch", "highspy", "pulp", "numpy", "networkx", "msgspec", "pyyaml", "rich", "typer")
_OPTIONAL = {"transformers": "hf: models"}


@dataclass(frozen=True)
class Finding:
    """One question and its answer; `needed`: without it autoplan does not work."""

    question: str
    status: Status
    answer: str
    needed: bool = True


@described(
    ("autoplan doctor", "autoplan doctor --json"),
    "0 all that is needed works; 1 something that is needed does not",
)
def doctor() -> Result:
    """Say what is installed, which devices there are, and try what autoplan needs.

    It solves a small integer program, plans and verifies a small model, and looks for the backends
    of torch.distributed.
    """
    questions: Sequence[tuple[str, bool, Callable[[], str]]] = (
        ("solver", True, _solver),
        ("plan", True, _plan),
        ("simulate and verify", True, _verify),
        ("train on CPU processes (gloo)", False, _gloo),
        ("train on GPUs (NCCL)", False, _nccl),
        ("plan hf: models", False, _transformers),
    )
    findings = list(_installed())
    with counting(len(questions)) as say:
        for question, needed, ask in questions:
            say(question)
            findings.append(_asked(question, needed, ask))
    facts = _facts()
    healthy = all(each.status == "ok" for each in findings if each.needed)
    document = {
        "command": "doctor",
        "healthy": healthy,
        "machine": facts,
        "findings": [
            {"question": f.question, "status": f.status, "answer": f.answer, "needed": f.needed}
            for f in findings
        ],
    }
    return Result(
        document, lambda console: _show(console, facts, findings, healthy), DONE if healthy else NO
    )


def _show(
    console: Console, facts: Mapping[str, Any], findings: Sequence[Finding], healthy: bool
) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in facts.items():
        said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(key.replace("_", " "), "", said or "none")
    colours = {"ok": "green", "missing": "yellow", "failed": "red"}
    for each in findings:
        colour = "red" if each.needed and each.status != "ok" else colours[each.status]
        table.add_row(each.question, f"[{colour}]{each.status}[/]", each.answer.replace("[", r"\["))
    console.print(table, highlight=False)
    console.print(
        "all that autoplan needs works here" if healthy else "something that is needed is missing",
        highlight=False,
    )


def _asked(question: str, needed: bool, ask: Callable[[], str]) -> Finding:
    begun = time.perf_counter()
    try:
        answer = ask()
    except _MissingError as error:
        return Finding(question, "missing", str(error), needed)
    except Exception as error:
        said = " ".join(str(error).split()) or "without a message"
        return Finding(question, "failed", f"{type(error).__name__}: {said}", needed)
    return Finding(question, "ok", f"{answer}, {time.perf_counter() - begun:.1f} s", needed)


class _MissingError(Exception):
    """Something is not there, and the message says how to get it."""


# -- what is there --------------------------------------------------------------------------------


def _installed() -> list[Finding]:
    found = []
    for name in (*_NEEDED, *_OPTIONAL):
        needed = name in _NEEDED
        try:
            found.append(Finding(name, "ok", version(name), needed))
        except PackageNotFoundError:
            use = "" if needed else f" for {_OPTIONAL[name]}"
            found.append(Finding(name, "missing", f"pip install {name}{use}", needed))
    return found


def _facts() -> dict[str, Any]:
    """Python, the machine, its devices, and the profile that a plan takes by default."""
    import torch

    import autoplan
    from autoplan.cost_models.profile import profile_names
    from autoplan.request import make_request

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "autoplan": autoplan.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "gpus": [f"{each.name}, {each.total_memory / 1e9:.0f} GB" for each in gpus],
        "cuda": torch.version.cuda or "torch was built without CUDA",
        "default_cluster": make_request(1).cluster.profile.name,
        "clusters": list(profile_names()),
    }  # fmt: skip


# -- what works -----------------------------------------------------------------------------------


def _solver() -> str:
    """3 of 5 boxes of sizes 1 to 5 with the largest sum that stays below 10: 1, 3 and 5, say."""
    import pulp

    problem = pulp.LpProblem("boxes", pulp.LpMaximize)
    boxes = [problem.add_variable(f"box_{size}", cat="Binary") for size in range(1, 6)]
    problem += pulp.lpSum(size * box for size, box in enumerate(boxes, 1))
    problem += pulp.lpSum(boxes) == 3
    problem += pulp.lpSum(size * box for size, box in enumerate(boxes, 1)) <= 9.5
    problem.solve(pulp.HiGHS(msg=False))
    if round(pulp.value(problem.objective)) != 9:
        raise RuntimeError(f"a sum of {pulp.value(problem.objective)} instead of 9")
    return "HiGHS solves integer programs"


def _small() -> tuple[Any, Any]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), torch.randn(4, 8)


def _plan() -> str:
    import autoplan

    model, x = _small()
    plan = autoplan.plan(model, (x,), devices=2, cluster="h100")
    if not plan.certificate.bound <= plan.step_time_s:
        raise RuntimeError("the bound of a plan lies above it")
    return "for any cluster, without its devices"


def _verify() -> str:
    import autoplan

    model, x = _small()
    module = autoplan.parallelize(model, (x,), devices=2, cluster="cpu", preset="fsdp")
    check = module.verify((x,), steps=1)
    if not check.ok:
        raise RuntimeError(str(check))
    return "all ranks in one process, equal in float64"


def _gloo() -> str:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise _MissingError("this torch has no gloo; install one that has")
    return f"torchrun, up to {os.cpu_count()} processes without sharing a core"


def _nccl() -> str:
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        raise _MissingError("no GPU that torch can use; plans for GPUs are made all the same")
    if not dist.is_available() or not dist.is_nccl_available():
        raise _MissingError("this torch has no NCCL; install a build with CUDA")
    return f"{torch.cuda.device_count()} here"


def _transformers() -> str:
    try:
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise _MissingError("pip install transformers") from error
    return f"{len(CONFIG_MAPPING.keys())} types"
