"""The recorder: what a rank really does in one step, from when to when.

Forward, each node of the emitted program is a span; backward, each autograd node that one of them
made, named after it. Collectives are spans of their own, wherever they run. Nothing is installed
but during a step that is profiled, and nothing that is installed changes a value.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, fx

from autoplan.runtime.executor import Executor, SimulatedExecutor
from autoplan.runtime.program import Program
from autoplan.runtime.regather import keeping_shards
from autoplan.runtime.stage_step import StageStep
from autoplan.trace.spans import Span


class Clock(Protocol):
    """Marks moments, and says later when they were."""

    def mark(self) -> Any:
        """Now, as the device sees it."""

    def seconds(self, marks: Sequence[Any], start: Any) -> list[float]:
        """Seconds from `start` of all marks; waits for the device."""


class HostClock:
    """The processor's own clock: of devices that have done an op when it returns."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def seconds(self, marks: Sequence[int], start: int) -> list[float]:
        return [1e-9 * (mark - start) for mark in marks]


class CudaClock:
    """Events on the current stream: when the device came by, not when it was told to."""

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event], start: torch.cuda.Event) -> list[float]:
        torch.cuda.synchronize()
        return [1e-3 * start.elapsed_time(mark) for mark in marks]


def clock_of(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()


class Recorder:
    """Records spans of the ranks that are present in this process, on tracks by pipeline rank."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.mark()
        self._spans: list[tuple[tuple[int, str], str, str, Any, Any, dict[str, Any]]] = []
        # Held for the step: what is dropped could come again as another node.
        self._seen: set[Any] = set()

    def restart(self) -> None:
        """The step begins now."""
        self._start = self._clock.mark()

    @contextmanager
    def span(self, rank: int, track: str, name: str, category: str, **args: Any) -> Iterator[None]:
        begin = self._clock.mark()
        try:
            yield
        finally:
            self._spans.append(((rank, track), name, category, begin, self._clock.mark(), args))

    def spans(self) -> dict[tuple[int, str], list[Span]]:
        """By pipeline rank and track, in order; forgets them."""
        flat = [mark for each in self._spans for mark in each[3:5]]
        times = iter(self._clock.seconds(flat, self._start))
        found: dict[tuple[int, str], list[Span]] = {}
        for (key, name, category, _, _, args), begin, end in zip(
            self._spans, times, times, strict=False
        ):
            span = Span(key[1], name, category, max(begin, 0.0), max(end - begin, 0.0), args)
            found.setdefault(key, []).append(span)
        self._spans.clear()
        self._seen.clear()
        return {key: sorted(each, key=lambda s: s.start_s) for key, each in found.items()}

    # -- nodes and their backwards --------------------------------------------------------------

    def watch_backward(self, rank: int, node: fx.Node, result: Any) -> None:
        """Have every autograd node that is new behind `result` recorded as of `node`."""
        name, args = described(node)
        waiting = [each.grad_fn for each in _tensors(result) if each.grad_fn is not None]
        while waiting:
            found = waiting.pop()
            if found in self._seen:
                continue
            self._seen.add(found)
            self._hook(rank, found, name, args)
            waiting += [each for each, _ in found.next_functions if each is not None]

    def know(self, values: Any) -> None:
        """What was made before: its backward is not of the nodes that read it."""
        waiting = [each.grad_fn for each in _tensors(values) if each.grad_fn is not None]
        self._seen.update(waiting)

    def _hook(self, rank: int, found: Any, name: str, args: dict[str, Any]) -> None:
        begins: list[Any] = []

        def begin(_: Any) -> None:
            begins.append(self._clock.mark())

        def end(*_: Any) -> None:
            if begins:
                more = {**args, "autograd": found_name}
                key = rank, "compute"
                now = self._clock.mark()
                self._spans.append((key, name, "backward", begins.pop(), now, more))

        found_name = found.name()
        if found_name == "torch::autograd::AccumulateGrad":
            return
        found.register_prehook(begin)
        found.register_hook(end)

    # -- stages and communicators ---------------------------------------------------------------

    def watch_steps(self, steps: Sequence[StageStep], rank_of: Callable[[int], int]) -> None:
        """Record forwards and backwards of microbatches of stages, which live for one step."""
        for step in steps:
            for kind in ("forward", "backward", "backward_input", "backward_weight"):
                setattr(step, kind, self._event(step, kind, rank_of(step.number)))

    def _event(self, step: StageStep, kind: str, rank: int) -> Callable[..., Any]:
        run = getattr(step, kind)
        nesting = functools.partial(self.span, rank, "compute")

        @functools.wraps(run)
        def timed(microbatch: int, *given: Any) -> Any:
            name = f"{kind.replace('_', ' of ')} {microbatch}, stage {step.number}"
            with nesting(name, kind, microbatch=microbatch, stage=step.number):
                return run(microbatch, *given)

        return timed

    @contextmanager
    def communicators(self, rank: int, executor: Executor) -> Iterator[None]:
        """Record collectives of a real rank; a simulation's are nodes of its own."""
        if isinstance(executor, SimulatedExecutor):
            yield
            return
        (comm,) = executor.comms
        kinds: dict[str, Callable[..., dict[str, Any]]]
        kinds = {"_collective": _collective, "_perform": _request, "_exchange": _exchange}
        try:
            for method, describe in kinds.items():
                setattr(comm, method, self._communicating(rank, getattr(comm, method), describe))
            yield
        finally:
            for method in kinds:
                comm.__dict__.pop(method, None)

    def _communicating(
        self, rank: int, run: Callable[..., Any], describe: Callable[..., dict[str, Any]]
    ) -> Callable[..., Any]:
        @functools.wraps(run)
        def timed(*given: Any, **named: Any) -> Any:
            args = describe(*given)
            with self.span(rank, "communication", str(args["kind"]), "collective", **args):
                return run(*given, **named)

        return timed


def _collective(name: str, buffer: Tensor, axis: str, *_: Any) -> dict[str, Any]:
    return {"kind": name, "axis": axis, "buffer bytes": buffer.numel() * buffer.element_size()}


def _request(request: Any) -> dict[str, Any]:
    return {"kind": request.kind, "axis": request.axis, "buffer bytes": request.num_bytes}


def _exchange(x: Tensor, exchange: Any) -> dict[str, Any]:
    return {"kind": "all_to_all", "axis": exchange.axis, "buffer bytes": exchange.size_bytes(x)}


class RecordingExecutor:
    """An executor whose programs run node by node, each a span; all else is the executor's own."""

    def __init__(self, executor: Executor, rank: int, recorder: Recorder) -> None:
        self._executor, self._rank, self._recorder = executor, rank, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def run(self, part: str, programs: Sequence[Program], inputs: Sequence[Any]) -> list[Any]:
        """As `Executor.run`, to the bit."""
        self._recorder.know(inputs)
        if isinstance(self._executor, SimulatedExecutor):
            return self._simulated(self._executor, part, programs, inputs)
        module: fx.GraphModule = getattr(programs[0], part)
        (comm,) = self._executor.comms
        with keeping_shards(programs[0].gathers):
            return list(_Timed(module, self._rank, self._recorder, part).run(comm, *inputs))

    def _simulated(
        self,
        executor: SimulatedExecutor,
        part: str,
        programs: Sequence[Program],
        inputs: Sequence[Any],
    ) -> list[Any]:
        simulator, recorder = executor.simulator, self._recorder
        call: Any = simulator._call

        def timed(nodes: Sequence[fx.Node], environments: Any) -> Any:
            with _of_node(recorder, self._rank, nodes[0], part):
                result = call(nodes, environments)
            recorder.watch_backward(self._rank, nodes[0], result)
            return result

        simulator._call = timed  # type: ignore[method-assign]
        try:
            return executor.run(part, programs, inputs)
        finally:
            del simulator._call


class _Timed(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, rank: int, recorder: Recorder, part: str) -> None:
        super().__init__(module)
        self._rank, self._recorder, self._part = rank, recorder, part

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output") or n.target is operator.getitem:
            return super().run_node(n)
        with _of_node(self._recorder, self._rank, n, self._part):
            result = super().run_node(n)
        self._recorder.watch_backward(self._rank, n, result)
        return result


@contextmanager
def _of_node(recorder: Recorder, rank: int, node: fx.Node, part: str) -> Iterator[None]:
    name, args = described(node)
    category = "forward" if part == "body" else part
    with recorder.span(rank, "compute", name, category, **args):
        yield


def described(node: fx.Node) -> tuple[str, dict[str, Any]]:
    """The module and op of a node of an emitted program, and what its note says of layouts."""
    path, _, rest = str(node.meta.get("note", "")).partition(": ")
    op = str(node.target).removeprefix("aten.").split(".")[0]
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
        op = getattr(node.target, "__name__", op)
    return f"{path or 'the model'}/{op}", {"says": rest} if rest else {}


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from _tensors(each)


@contextmanager
def recording(recorder: Recorder, executors: dict[int, Executor]) -> Iterator[None]:
    """Have `executors`, by pipeline rank, record what runs; they are themselves afterwards."""
    before = dict(executors)
    with ExitStack() as stack:
        for rank, executor in before.items():
            stack.enter_context(recorder.communicators(rank, executor))
        try:
            for rank, executor in before.items():
                executors[rank] = cast(Executor, RecordingExecutor(executor, rank, recorder))
            recorder.restart()
            yield
        finally:
            executors.update(before)
