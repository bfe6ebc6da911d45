"""The published runs as values, read from published_runs.toml; nothing here imports torch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

KEY_VALUE_HEADS = 8
"""Of every Llama 3 (Grattafiori et al. 2024, table 3)."""
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """Where runs come from, and what they ran on.

    precision: "mixed" has float32 master weights. attention: as transformers names it; "eager"
    multiplies, masks, normalises and multiplies in kernels of their own.
    """

    title: str
    url: str
    profile: str
    precision: Literal["mixed", "pure"]
    dtype: str
    attention: Literal["eager", "sdpa"]
    hardware: str

    @property
    def cluster(self) -> str:
        """The name of a shipped profile, or the path of one beside this file."""
        return str(_FOLDER / self.profile) if self.profile.endswith(".toml") else self.profile


@dataclass(frozen=True)
class Run:
    """One run: a model, its setting, and the throughput in the source's own unit.

    batch: sequences a step; microbatch: of one data rank, None where the source has none.
    feed_forward: its width, None for 4 x hidden, and 3.5 x hidden in a Llama. chunks: stages on
    each pipeline rank. quick: run without being asked for.
    """

    name: str
    source: Source
    model: Literal["BERT", "GPT", "Llama"]
    layers: int
    hidden: int
    heads: int
    sequence: int
    vocabulary: int
    data: int
    tensor: int
    pipeline: int
    batch: int
    recompute: Literal["all", "none", "selective"]
    microbatch: int | None = None
    sharded: bool = False
    sequence_parallel: bool = False
    chunks: int = 1
    feed_forward: int | None = None
    quick: bool = False
    samples_per_s: float | None = None
    megatron_samples_per_s: float | None = None
    tflops_per_gpu: float | None = None
    tokens_per_s_per_gpu: float | None = None
    memory_gib: float | None = None

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline

    @property
    def setting(self) -> str:
        """How its source says that it ran: data x tensor x pipeline, and what goes with it."""
        text = f"{self.data}x{self.tensor}x{self.pipeline}"
        text += " sharded" if self.sharded else ""
        text += f", {self.chunks} chunks" if self.chunks > 1 else ""
        return text + {"all": ", ac", "none": "", "selective": ", some ac"}[self.recompute]

    @property
    def width(self) -> int:
        """Of the feed-forward part."""
        usual = 7 * self.hidden // 2 if self.model == "Llama" else 4 * self.hidden
        return self.feed_forward or usual

    @property
    def measured_samples_per_s(self) -> float:
        """Sequences a second of all devices, as published."""
        if self.samples_per_s is not None:
            return self.samples_per_s
        if self.tokens_per_s_per_gpu is not None:
            return self.tokens_per_s_per_gpu * self.devices / self.sequence
        assert self.tflops_per_gpu is not None
        return self.tflops_per_gpu * 1e12 * self.devices * self.batch / self.flops

    @property
    def flops(self) -> float:
        """Of a step, as the source counts them.

        Of a GPT with recomputation, 96 B s l h^2 (1 + s / 6h + V / 16 l h): Narayanan et al. 2021,
        section 5.1. Of a Llama without, B s (6 N + 12 l h s): Chowdhery et al. 2022, appendix B.
        """
        s, l, h, v = self.sequence, self.layers, self.hidden, self.vocabulary  # noqa: E741
        if self.model == "Llama":
            shared = KEY_VALUE_HEADS / self.heads
            parameters = l * (h * h * (2 + 2 * shared) + 3 * h * self.width) + 2 * v * h
            return self.batch * s * (6.0 * parameters + 12.0 * l * h * s)
        return 96.0 * self.batch * s * l * h * h * (1 + s / (6 * h) + v / (16 * l * h))

    def in_own_unit(self, samples_per_s: float) -> float:
        """A throughput in the unit in which the source gives it."""
        if self.samples_per_s is not None:
            return samples_per_s
        if self.tokens_per_s_per_gpu is not None:
            return samples_per_s * self.sequence / self.devices
        return samples_per_s * self.flops / self.batch / self.devices / 1e12

    @property
    def unit(self) -> str:
        if self.samples_per_s is not None:
            return "samples/s"
        return "tokens/s/GPU" if self.tokens_per_s_per_gpu is not None else "TFLOP/s/GPU"

    @property
    def microbatch_counts(self) -> tuple[int, ...]:
        """Numbers of microbatches to price: the published one, or of some sizes that divide."""
        each = self.batch // self.data
        if self.microbatch is not None:
            return (each // self.microbatch,)
        return tuple(each // size for size in (1, 4, 16) if each % size == 0)


def read_runs() -> dict[str, Run]:
    """Every run by its name."""
    text = (_FOLDER / "published_runs.toml").read_text(encoding="utf-8")
    read = tomllib.loads(text)
    sources = {name: Source(**given) for name, given in read["sources"].items()}
    runs = [Run(**{**given, "source": sources[given["source"]]}) for given in read["run"]]
    return {run.name: run for run in runs}
