"""Pipelines on real ranks beside one device: what every rank of `test_pipelines` runs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import autoplan
from autoplan.runtime.reference import run_reference
from tests.end_to_end.known_captures import captured_once
from tests.models import Example, gpt2, ideal_cluster

STEPS = 3
LEARNING_RATE = 1e-3
ROWS = 8


@dataclass(frozen=True)
class Case:
    """A model, the `parallel` it is given, and how it is trained."""

    model: str
    parallel: dict[str, Any] = field(default_factory=dict)
    microbatches: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    clip: float | None = None
    calls: bool = False
    """Whether a call with a backward of its own is compared, too."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.model} {self.name}".strip()


@dataclass(frozen=True)
class Run:
    """What training leaves: losses, the first gradients, norms, and the weights and buffers."""

    losses: list[float]
    gradients: dict[str, Tensor]
    norms: list[float]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """One case on one rank: how far it is from one device, and where its parameters are."""

    loss_errors: list[float]
    gradient_errors: dict[str, float]
    norm_errors: list[float]
    state_errors: dict[str, float]
    call_error: float
    held: tuple[str, ...]
    stages: tuple[int, ...]


def bert() -> nn.Module:
    """A BERT for masked words, its head tied to its embedding, with dropout."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        num_hidden_layers=6,
        hidden_size=16,
        num_attention_heads=4,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=16,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return BertForMaskedLM(config)


def t5() -> nn.Module:
    """An encoder-decoder whose two embeddings and head are one parameter."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        num_layers=2,
        d_model=16,
        d_kv=4,
        num_heads=4,
        d_ff=24,
        vocab_size=40,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config)


def resnet() -> nn.Module:
    """A ResNet whose batch norms keep running statistics."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[3, 3],
        layer_type="basic",
        num_labels=5,
    )
    return ResNetForImageClassification(config)


def _tokens(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (ROWS, 8), generator=generator)


def example_of(name: str) -> Example:
    """A batch of ROWS rows."""
    if name == "resnet":
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(ROWS, 3, 16, 16, generator=generator, dtype=torch.float64)
        return (pixels,), {"labels": torch.arange(ROWS) % 5}
    ids = _tokens(40)
    if name == "bert":
        mask = torch.ones_like(ids)
        mask[:, -2:] = 0
        return (ids,), {"attention_mask": mask, "labels": ids}
    return (ids,), {"labels": ids}


@cache
def model_of(name: str) -> nn.Module:
    """The model in float64, the same in every process."""
    torch.manual_seed(3)
    if name == "gpt2":
        return gpt2(n_layer=4, vocab_size=40, dropout=0.1)
    return {"bert": bert, "t5": t5, "resnet": resnet}[name]().double().train()


def _rows(example: Example, microbatches: int) -> list[Example]:
    args, kwargs = example
    size = ROWS // microbatches
    parts = [slice(k * size, (k + 1) * size) for k in range(microbatches)]
    return [(tuple(a[p] for a in args), {k: v[p] for k, v in kwargs.items()}) for p in parts]


@cache
def one_device(name: str, microbatches: int, clip: float | None) -> Run:
    """Training without autoplan: gradients of microbatches add up."""
    model = copy.deepcopy(model_of(name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, eps=1e-6)
    losses, norms, gradients = [], [], {}
    position = 0
    for step in range(STEPS):
        total = 0.0
        for args, kwargs in _rows(example_of(name), microbatches):
            output = run_reference(model, args, kwargs, 0, position)
            position += 1
            (output["loss"] / microbatches).backward()
            total += float(output["loss"].detach()) / microbatches
        losses.append(total)
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        if clip is not None:
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
        optimizer.zero_grad()
    return Run(losses, gradients, norms, _state(model.state_dict()))


def _state(state: Any) -> dict[str, Tensor]:
    return {path: value.detach().cpu().clone() for path, value in state.items()}


def train(case: Case) -> Outcome:
    """The case on this rank, or simulated, against one device."""
    torch.set_num_threads(1)
    with captured_once(case.model):
        return _train(case)


def _train(case: Case) -> Outcome:
    args, kwargs = example_of(case.model)
    devices = _devices(case)
    module = autoplan.parallelize(
        model_of(case.model),
        args,
        kwargs,
        devices=devices,
        parallel=case.parallel,
        microbatches=case.microbatches,
        **{"cluster": ideal_cluster(devices), **case.options},
    )
    truth = one_device(case.model, case.microbatches, case.clip)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, eps=1e-6)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        losses.append(float(module.train_step(args, kwargs).loss))
        if step == 0:
            gradients = _gradients(module)
        if case.clip is not None:
            norms.append(float(module.clip_grad_norm_(case.clip)))
        optimizer.step()
        optimizer.zero_grad()
    state = _state(module.full_state_dict())
    floor = 1e-3 * max(float(g.abs().max()) for g in truth.gradients.values())
    return Outcome(
        [abs(a - b) / abs(b) for a, b in zip(losses, truth.losses, strict=True)],
        {p: _error(g, truth.gradients[p], floor) for p, g in gradients.items()},
        [abs(a - b) / abs(b) for a, b in zip(norms, truth.norms, strict=True)],
        # What only rounding moved (a key's bias) is measured by the steps that others took.
        {p: _error(state[p], true, LEARNING_RATE) for p, true in truth.state.items()},
        _call_error(module, case) if case.calls else 0.0,
        tuple(path for path, _ in module.named_parameters()),
        module.plan.pipeline.actual if module.plan.pipeline else (),
    )


def _devices(case: Case) -> int:
    pipeline = case.parallel.get("pipeline", 1)
    size = pipeline["size"] if isinstance(pipeline, dict) else pipeline
    tensor = case.parallel.get("tensor", 1)
    own = tensor["size"] if isinstance(tensor, dict) else tensor
    return int(size * own * case.parallel.get("data", 1))


def _gradients(module: Any) -> dict[str, Tensor]:
    """Whole gradients of the parameters that this rank holds."""
    found = {}
    for path, parameter in module.named_parameters():
        grad = parameter.grad
        found[path] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        found[path] = found[path].clone()
    return found


def _call_error(module: Any, case: Case) -> float:
    """A call and its backward against a training step of one microbatch: the gradients agree."""
    args, kwargs = example_of(case.model)
    part = _rows((args, kwargs), case.microbatches)[0]
    module.eval()
    module.zero_grad()
    output = module(*part[0], **part[1])
    output["loss"].backward()
    called = _gradients(module)
    reference = copy.deepcopy(model_of(case.model)).eval()
    reference.load_state_dict(module.full_state_dict())
    truth = run_reference(reference, *part, 0, 0)
    truth["loss"].backward()
    true = dict(reference.named_parameters())
    floor = 1e-3 * max(float(p.grad.abs().max()) for p in true.values())
    errors = [_error(g, true[p].grad, floor) for p, g in called.items()]
    logits = _error(output["logits"], truth["logits"])
    module.train()
    return max([logits, *errors])


def _error(value: Tensor, truth: Tensor, floor: float = 0.0) -> float:
    if not truth.is_floating_point():
        return float((value != truth).sum())
    value, truth = value.detach().cpu(), truth.detach().cpu()
    return float((value - truth).abs().max()) / max(float(truth.abs().max()), floor, 1e-30)


def everything(rank: int, cases: list[Case]) -> list[Outcome]:
    """All cases, one after the other, on this rank."""
    return [train(case) for case in cases]
