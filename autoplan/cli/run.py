"""`autoplan run`: a training script on as many processes as its plan has devices."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from autoplan.cli.command import DONE, Result, described
from autoplan.cli.console import messages

PLAN_VARIABLE = "AUTOPLAN_PLAN"
"""Holds the absolute path of the plan file in every process that `run` starts."""

_Plan = Annotated[Path, typer.Option("--plan", "-p", help="The plan file.", show_default=False)]
_Script = Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python file.")]
_Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="ARGS", help="Of the script, as they are.")
]
_Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Processes here. [default: the plan's devices over --nnodes]"),
]
_Nodes = Annotated[int, typer.Option("--nnodes", min=1, help="Machines that take part.")]
_Rank = Annotated[int, typer.Option(min=0, help="Which of the machines this is.")]
_Address = Annotated[str, typer.Option(help="Address of machine 0.")]
_Port = Annotated[int, typer.Option(help="A free port there; 0 takes any, on one machine.")]


@dataclass(frozen=True)
class Launch:
    """Processes of one machine, and where they meet the others."""

    processes: int
    nodes: int = 1
    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    def arguments(self) -> tuple[str, ...]:
        """What torchrun is told."""
        count = f"--nproc-per-node={self.processes}", f"--nnodes={self.nodes}"
        if self.nodes == 1:
            where = "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self.port}"
            return (*count, *where)
        place = f"--node-rank={self.node_rank}", f"--master-addr={self.address}"
        return (*count, *place, f"--master-port={self.port}")


@described(
    (
        "autoplan run --plan plan.toml train.py --steps 100",
        "autoplan run --plan plan.toml --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 "
        "--master-port 29500 train.py",
    ),
    "those of the script, of the process that failed first; 128 + n after signal n",
    settings={"allow_interspersed_args": False},
)
def run(
    plan: _Plan,
    script: _Script,
    args: _Arguments = None,
    nproc_per_node: _Processes = None,
    nnodes: _Nodes = 1,
    node_rank: _Rank = 0,
    master_addr: _Address = "127.0.0.1",
    master_port: _Port = 0,
) -> Result:
    """Train with a plan: torchrun on SCRIPT, with one process for each device of the plan.

    The script finds the path of the plan in the environment variable AUTOPLAN_PLAN, and hands it
    on: autoplan.parallelize(model, plan=os.environ["AUTOPLAN_PLAN"]).
    """
    from autoplan.errors import ConfigError
    from autoplan.plan import load_plan

    devices = load_plan(plan).mesh.num_devices
    processes = nproc_per_node if nproc_per_node is not None else max(devices // nnodes, 1)
    if processes * nnodes != devices:
        raise ConfigError(
            f"{str(plan)!r} is for {devices} devices, and {processes} processes on {nnodes} "
            f"machine{'s' * (nnodes != 1)} are {processes * nnodes}; "
            + (
                f"give --nproc-per-node {devices // nnodes}, or plan again."
                if devices % nnodes == 0
                else f"take a number of machines that divides {devices}, or plan again."
            )
        )
    if not script.is_file():
        raise ConfigError(f"there is no script {str(script)!r}; check the path.")
    if nnodes > 1 and master_port == 0:
        raise ConfigError("machines meet at a port that all know; give --master-port 29500.")
    if PLAN_VARIABLE not in script.read_text(encoding="utf-8", errors="replace"):
        messages().print(
            f"autoplan: {script} does not mention {PLAN_VARIABLE}; it uses this plan where it calls"
            f' autoplan.parallelize(model, plan=os.environ["{PLAN_VARIABLE}"]).',
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    here = Launch(processes, nnodes, node_rank, master_addr, master_port)
    begun = time.perf_counter()
    code = launch(here, plan, script, args or [])
    document = {
        "command": "run",
        "plan": str(plan),
        "script": str(script),
        "devices": devices,
        "processes": processes,
        "exit_code": code,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return Result(document, lambda console: None, code)


def launch(here: Launch, plan: Path, script: Path, arguments: Sequence[str]) -> int:
    """Run torchrun in this process; the exit code of the process that failed first, or 0.

    Signals that reach this process are passed on to all it started, and give 128 + their number.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    variables = {PLAN_VARIABLE: str(plan.resolve())}
    if here.processes > 1:  # as torchrun does, without its warning
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    told = [*here.arguments(), str(script), *arguments]
    try:
        with _environment(variables), _own_handlers():
            torchrun(parse_args(told))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        messages().print(
            f"autoplan: rank {rank} of {script} failed first, with exit code {code}.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return code
    except SignalException as error:
        return 128 + int(error.sigval)
    return DONE


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """What signals do afterwards is what they did before; torchrun leaves its own handlers."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
