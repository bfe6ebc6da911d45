"""Files: the text of the Python file that a rank runs, and how equal ones are shared."""

from __future__ import annotations

import pprint
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from autoplan.layouts import B, Layout, local_shape
from autoplan.plan import Plan
from autoplan.pricing import dtype_name
from autoplan.program_text.listing import functions_of, globals_of, run_name
from autoplan.program_text.programs import StagePrograms
from autoplan.runtime.program import OutputSpec, Program, TensorSpec
from autoplan.runtime.recompute import parts_of
from autoplan.strategies.rule import TensorMeta

_HEAD = '''\
"""What {ranks} of {world} run{s} of {model}, on {mesh}: written by autoplan.

{what}

    torchrun --nproc-per-node {world} run.py        or, all ranks on this machine: python run.py

Beside this file: the shards of every rank (rank_N.pt) or the model's state dict (weights.pt),
constants.pt, and batch.pt, a list of the flat arguments of every microbatch. A run writes
result_N.pt: the loss, the gradients of rank N's shards, and outputs where there is no loss.

Comments say whose a value is, and how it lies: one entry for each mesh axis, S(d) a slice along
dimension d, B whole, B/P whole with an addend of its gradient, P an addend; then the type and the
shape of the whole. What lies otherwise on this rank follows "here".
"""
'''
_WHAT = """\
A step: the prologue turns parameters from how they are stored to how the body reads them, the body
runs every microbatch, and the prologue's backward reduces gradients."""
_WHAT_FORWARD = """\
The prologue turns parameters from how they are stored to how the body reads them, and the body runs
every microbatch."""

_TRAIN = '''\
def main():
    """Loss and gradients of a step on this rank."""
    rank = Rank(MESH, RANKS, __file__, SEED)
    parameters = [rank.value(each) for each in PARAMETERS]
    state = [rank.value(each) for each in STATE]
    buffers = [rank.value(each) for each in UPDATES]
    values = prologue(rank.comm, *parameters, *state)
    leaves = [leaf_of(each) for each in values]  # gradients of all microbatches add up here
    losses = []
    for number, batch in enumerate(rank.batches(INPUTS, MICROBATCHES)):
        rank.comm.step = number  # random numbers of dropout follow it
{run}
        buffers = [each.detach() for each in results[len(results) - len(UPDATES) :]]
        loss = results[LOSS]
        (loss / MICROBATCHES).backward()
        losses.append(loss.detach())
    found = [(value, leaf) for value, leaf in zip(values, leaves) if leaf.grad is not None]
    torch.autograd.backward([value for value, _ in found], [leaf.grad for _, leaf in found])
    named = dict(zip([each.name for each in PARAMETERS], parameters))
    return rank.finish(torch.stack(losses).mean(), named)
'''
_RUN = """\
        results = body(rank.comm, *leaves, *buffers, *batch)"""
_RUN_GATHERING = """\
        with keeping_shards(True):  # of what the body gathers, autograd keeps shards
            results = body(rank.comm, *leaves, *buffers, *batch)"""
_FORWARD = '''\
def main():
    """{doc} of every microbatch on this rank."""
    rank = Rank(MESH, RANKS, __file__, SEED)
    parameters = [rank.value(each) for each in PARAMETERS]
    state = [rank.value(each) for each in STATE]
    buffers = [rank.value(each) for each in UPDATES]
    outputs = []
    with torch.no_grad():
        values = prologue(rank.comm, *parameters, *state)
        for number, batch in enumerate(rank.batches(INPUTS, MICROBATCHES)):
            rank.comm.step = number  # random numbers of dropout follow it
            results = body(rank.comm, *values, *buffers, *batch)
            buffers = results[len(results) - len(UPDATES) :]
            outputs.append(epilogue(rank.comm, *results[: len(results) - len(UPDATES)]))
    loss = None if LOSS is None else torch.stack([each[LOSS] for each in outputs]).mean()
    return rank.finish(loss, {{}}, outputs)
'''
_PIPELINE = '''\
def main():
    """Loss and gradients of a step: this rank's stages, in the order of the schedule."""
    rank = Rank(MESH, RANKS, __file__, SEED, pipeline=MESHES)
    pipeline = Pipeline(rank, SCHEDULE, RANK_OF_STAGES, SHARED, LOSS)
    loss = pipeline.step(STAGES, MICROBATCHES, grad={grad})
    return rank.finish(loss, pipeline.parameters)
'''
_END = """\
if __name__ == "__main__":
    main()
"""


def files_of(plan: Plan, stages: Sequence[StagePrograms], seed: int = 0) -> dict[str, str]:
    """File name -> text: one for every distinct program, and run.py, which starts all ranks."""
    each = plan.mesh.num_devices if plan.pipeline is None else len(stages[0].programs)
    same: dict[str, list[int]] = {}
    for rank in range(plan.mesh.num_devices):
        mine = [stage for stage in stages if stage.rank == rank // each]
        write = _model if plan.pipeline is None else _pipeline
        same.setdefault(write(plan, stages, mine, rank % each, seed), []).append(rank)
    files = {}
    of_rank: dict[int, str] = {}
    for text, ranks in same.items():
        name = f"rank_{ranks[0]}.py"
        of_rank |= dict.fromkeys(ranks, name)
        files[name] = _head(plan, ranks) + _with_ranks(text, ranks)
    files["run.py"] = _launcher(plan, of_rank)
    return files


def _head(plan: Plan, ranks: Sequence[int]) -> str:
    world = plan.mesh.num_devices
    listed = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
    return _HEAD.format(
        ranks=f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}",
        s="s" if len(ranks) == 1 else "",
        world=world,
        model=plan.model,
        mesh=str(plan.mesh) if plan.mesh.ndim else "one device",
        what=_WHAT if plan.training else _WHAT_FORWARD,
    )


def _with_ranks(text: str, ranks: Sequence[int]) -> str:
    listed = pprint.pformat(tuple(ranks), width=90, compact=True)
    return text.replace("RANKS = ()", f"RANKS = {listed}", 1)


def _launcher(plan: Plan, of_rank: Mapping[int, str]) -> str:
    programs = pprint.pformat(dict(sorted(of_rank.items())), width=90)
    return (
        f'"""Starts the program of every rank of {plan.model}; written by autoplan."""\n\n'
        "from autoplan.runtime.saved import start\n\n"
        f"PROGRAMS = {programs}\n\n"
        'if __name__ == "__main__":\n'
        "    start(__file__, PROGRAMS)\n"
    )


# -- a model in one piece --------------------------------------------------------------------------


def _model(
    plan: Plan, stages: Sequence[StagePrograms], mine: Sequence[StagePrograms], at: int, seed: int
) -> str:
    """The file of rank `at`, without its head."""
    (stage,) = mine
    program = stage.programs[at]
    trains = plan.training and program.loss is not None
    functions = functions_of(program)
    names = ["Rank", "spec"] + ["leaf_of"] * trains
    names += ["keeping_shards"] * (trains and program.gathers)
    names += ["recomputed"] * any(True for _ in parts_of(program.body))
    place = None if program.loss is None else program.outputs[program.loss]
    loss = place.position if isinstance(place, OutputSpec) else None
    doc = "Outputs" if loss is None else "Loss and outputs"
    run = _RUN_GATHERING if program.gathers else _RUN
    main = _TRAIN.format(run=run) if trains else _FORWARD.format(doc=doc)
    return "\n".join(
        [
            _imports(names, [*globals_of(program, functions)]),
            _constants(dict(zip(plan.axes, plan.sizes, strict=True)), plan.microbatches, seed),
            _specs("PARAMETERS", program.parameters, program, stage.trained),
            _specs("STATE", program.state, program, comment="constants, and buffers that stay"),
            _specs("UPDATES", program.updates, program, comment="buffers that the body changes"),
            _inputs("INPUTS", program),
            f"LOSS = {loss}" + "  # among what the body returns" * (loss is not None) + "\n\n",
            functions + "\n\n",
            main + "\n",
            _END,
        ]
    )


def _imports(names: Sequence[str], lines: Sequence[str]) -> str:
    imported = f"from autoplan.runtime.saved import {', '.join(sorted(set(names), key=_order))}"
    own = [line for line in lines if not line.startswith("from ")]
    more = [line for line in lines if line.startswith("from ")]
    return "\n".join(
        ["", "import torch", *more, "", imported, "", "aten = torch.ops.aten", *own, ""]
    )


def _order(name: str) -> tuple[bool, str]:
    return name[0].islower(), name


def _constants(mesh: Mapping[str, int], microbatches: int, seed: int) -> str:
    return f"RANKS = ()\nMESH = {dict(mesh)}\nMICROBATCHES = {microbatches}\nSEED = {seed}\n"


def _specs(
    name: str,
    specs: Sequence[TensorSpec],
    program: Program,
    trained: frozenset[str] = frozenset(),
    comment: str = "",
) -> str:
    said = f"  # {comment}" if comment else ""
    if not specs:
        return f"{name} = ()" + said
    lines = [f"    {_spec(each, program, each.name in trained)}" for each in specs]
    return "\n".join([f"{name} = (" + said, *lines, ")"])


def _spec(each: TensorSpec, program: Program, trained: bool, at: int | None = None) -> str:
    local = local_shape(each.shape, each.layout, program.mesh, program.coordinates)
    here = f"  # here {list(local)}" if tuple(local) != tuple(each.shape) else ""
    text = _call(each.name, each.shape, str(each.dtype), each.layout, trained, each.reaches_loss)
    return f"{text},{here}" if at is None else f"({at}, {text}),{here}"


def _call(
    name: str,
    shape: Sequence[int],
    dtype: str,
    layout: Layout,
    trained: bool,
    reaches_loss: bool = True,
) -> str:
    more = ", trained=True" * trained + ", reaches_loss=False" * (not reaches_loss)
    return f'spec({name!r}, {tuple(shape)}, {dtype}, "{layout}"{more})'


def _inputs(name: str, program: Program) -> str:
    said = "  # position among the flat arguments, and how each lies"
    if not program.inputs:
        return f"{name} = ()" + said
    lines = [f"    {_spec(each, program, False, at)}" for at, each in program.inputs]
    return "\n".join([f"{name} = (" + said, *lines, ")"])


# -- pipelines -------------------------------------------------------------------------------------


def _pipeline(
    plan: Plan, stages: Sequence[StagePrograms], mine: Sequence[StagePrograms], at: int, seed: int
) -> str:
    """The file of rank `at` of a pipeline rank, with all its stages, without its head."""
    pipeline = plan.pipeline
    assert pipeline is not None
    last = stages[-1]
    assert last.loss is not None  # a pipeline is planned for one
    functions = [functions_of(s.programs[at], f"_{s.number}", epilogue=False) for s in mine]
    lines = (line for s in mine for line in globals_of(s.programs[at], "\n".join(functions)))
    names = ["Rank", "Pipeline", "spec", "stage"]
    names += ["recomputed"] * any(True for s in mine for _ in parts_of(s.programs[at].body))
    own = mine[0].plan
    mesh = dict(zip(own.axes, own.sizes, strict=True))
    loss = _of_loss(last.loss)
    return "\n".join(
        [
            _imports(names, list(dict.fromkeys(lines))),
            _constants(mesh, plan.microbatches, seed).rstrip(),
            f"MESHES = {_meshes(stages)}  # of every pipeline rank",
            f"SCHEDULE = {pipeline.schedule!r}",
            f"RANK_OF_STAGES = {tuple(s.rank for s in stages)}  # pipeline ranks, stage by stage",
            f"SHARED = {_shared(stages)}  # parameters that several pipeline ranks hold",
            f"LOSS = {loss}\n\n",
            "\n\n\n".join(functions) + "\n\n",
            "STAGES = (",
            *(textwrap.indent(_stage(s, s.programs[at]), "    ") for s in mine),
            ")\n\n",
            _PIPELINE.format(grad=plan.training) + "\n",
            _END,
        ]
    )


def _meshes(stages: Sequence[StagePrograms]) -> tuple[dict[str, int], ...]:
    found = {each.rank: each.plan for each in stages}
    return tuple(
        dict(zip(found[rank].axes, found[rank].sizes, strict=True)) for rank in sorted(found)
    )


def _of_loss(meta: TensorMeta) -> str:
    whole = Layout((B,))
    return _call("loss", meta.shape, f"torch.{dtype_name(meta)}", whole, meta.requires_grad)


def _shared(stages: Sequence[StagePrograms]) -> dict[str, tuple[int, ...]]:
    homes: dict[str, dict[int, None]] = {}
    for each in stages:
        for spec in each.programs[0].parameters:
            homes.setdefault(spec.name, {})[each.rank] = None
    return {path: tuple(ranks) for path, ranks in homes.items() if len(ranks) > 1}


def _stage(stage: StagePrograms, program: Program) -> str:
    number = stage.number
    parameters = [_spec(e, program, e.name in stage.trained) for e in program.parameters]
    lines = [
        f"stage(  # {number}",
        f"    {number},",
        f"    prologue=prologue_{number},",
        f"    body=body_{number},",
        *_field("parameters", parameters),
        *_field("state", [_spec(e, program, False) for e in program.state]),
        *_field("updates", [_spec(e, program, False) for e in program.updates]),
        *_field("inputs", [_spec(e, program, False, at) for at, e in program.inputs]),
        *_field("received", [_spec(e, program, e.requires_grad) for e in program.received]),
        *_field("sent", [_spec(e, program, e.requires_grad) for e in program.sent]),
        f"    gathers={program.gathers},",
    ]
    again = [run_name(name, f"_{number}") for name, _ in parts_of(program.body)]
    lines += [f"    again=({', '.join(again)},),"] if again else []
    if program.loss is not None and stage.loss is not None:
        place = program.outputs[program.loss]
        assert isinstance(place, OutputSpec)
        lines.append(f"    loss=({place.position}, LOSS),")
    return "\n".join([*lines, "),"])


def _field(name: str, lines: Sequence[str]) -> Iterator[str]:
    if not lines:
        yield f"    {name}=(),"
        return
    yield f"    {name}=("
    yield from (f"        {line}" for line in lines)
    yield "    ),"
