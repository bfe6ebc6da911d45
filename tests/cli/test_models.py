"""Models by name: what a file may return, and types of transformers by their config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoplan.cli.arguments import ModelOptions, _spread_sets
from autoplan.cli.models import build
from autoplan.errors import ConfigError
from tests.cli.conftest import NET, Cli


def build_(text: str, **options: object) -> object:
    return build(text, ModelOptions(**options))  # type: ignore[arg-type]


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("", {}, (8, 16)),
        (":build", {"set_": ["width=4"], "batch": 3}, (3, 4)),
        (":Net", {"arg": ["float32[5, 16]"]}, (5, 16)),
        (":MODULE", {}, (8, 16)),
        (":with_arguments", {"set_": ["rows=2"]}, (2, 16)),
        (":with_keywords", {}, (4, 16)),
        (":Net", {"arg": ["x=float32[2,16]"]}, (2, 16)),
    ],
)
def test_a_file_gives_a_model_with_arguments(name: str, options: object, shape: object) -> None:
    made = build(NET + name, ModelOptions(**options))  # type: ignore[arg-type]
    (x,) = (*made.args, *made.kwargs.values())
    assert tuple(x.shape) == shape
    assert made.model(*made.args, **made.kwargs).ndim == 0


def test_a_dotted_module_and_the_meta_device() -> None:
    made = build("tests.cli.net:build", ModelOptions(meta=True))
    assert all(each.is_meta for each in made.model.parameters())
    assert made.args[0].is_meta


def test_another_type_is_that_of_model_and_arguments() -> None:
    made = build(NET, ModelOptions(dtype="bfloat16"))
    assert made.args[0].dtype is torch.bfloat16
    assert {each.dtype for each in made.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("nte.py", {}, r"there is no file 'nte.py'"),
        (NET.replace("net.py", "nte.py"), {}, r"no file .*nte.py' \(did you mean 'net.py'\?\)"),
        (f"{NET}:buidl", {}, r"has no 'buidl' \(did you mean 'build'\?\); it defines Net, build"),
        (f"{NET}:build", {"set_": ["widht=4"]}, r"an argument 'widht' \(did you mean 'width'\?\)"),
        (f"{NET}:build", {"set_": ["width"]}, r"'width' is not of the form NAME=VALUE"),
        (f"{NET}:build", {"tokens": 4}, r"--tokens: nothing in .* has an argument 'tokens'"),
        (f"{NET}:needs", {}, r"needs 'width': --set width="),
        (f"{NET}:a_text", {}, r"gives a str, and a model is expected"),
        (f"{NET}:breaks", {}, r"net.py, line \d+: KeyError: 'the number of layers'"),
        (f"{NET}:build", {"arg": ["float[3]"]}, r"type 'float' is not known \(did you mean"),
        (f"{NET}:build", {"arg": ["float32"]}, r"not of the form \[NAME=\]TYPE\[SHAPE\]"),
        (f"{NET}:build", {"dtype": "bfloat"}, r"'bfloat' is not known \(did you mean 'bfloat16'"),
        ("no.such.module:build", {}, r"no module is called 'no.such.module'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_(text, **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def build(:\n", r"line 1: .*no valid Python"),
        ("import no_such_package\n", r"line 1: ModuleNotFoundError: No module named 'no_such_"),
        ("x = 1\ny = x.z\n", r"line 2: AttributeError"),
        ("x = 1\n", r"has no 'build'\."),
        ("import torch\ndef build():\n    return torch.nn.Linear(2, 2)\n", r"without example arg"),
    ],
)
def test_what_is_wrong_in_a_file_has_its_line(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "model_of_a_user.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message):
        build_(str(path))


def test_set_takes_all_that_follows() -> None:
    given = ["m.py", "--set", "a=1", "b=x=y", "--devices", "4", "memory=4GB", "--", "--set", "a=1"]
    assert _spread_sets(given) == [
        *("m.py", "--set", "a=1", "--set", "b=x=y", "--devices", "4", "memory=4GB"),
        *("--", "--set", "a=1"),
    ]


# -- transformers ---------------------------------------------------------------------------------

TINY = {
    "gpt2": "n_layer=1 hidden_size=16 n_head=2 vocab_size=101",
    "bert": "num_hidden_layers=1 hidden_size=16 num_attention_heads=2 intermediate_size=24 "
    "vocab_size=101",
    "t5": "num_layers=1 d_model=16 d_kv=8 num_heads=2 d_ff=24 vocab_size=101",
    "vit": "num_hidden_layers=1 hidden_size=16 num_attention_heads=2 intermediate_size=24 "
    "image_size=32 num_labels=5",
    "llama": "num_hidden_layers=1 hidden_size=16 num_attention_heads=2 num_key_value_heads=2 "
    "intermediate_size=24 vocab_size=101",
    "mixtral": "num_hidden_layers=1 hidden_size=16 num_attention_heads=2 num_key_value_heads=2 "
    "intermediate_size=24 vocab_size=101 num_experts=2",
}


@pytest.mark.parametrize("name", TINY)
def test_types_of_transformers_have_sizes_and_inputs(name: str) -> None:
    options = ModelOptions(set_=TINY[name].split(), batch=2, tokens=None if name == "vit" else 6)
    made = build(f"hf:{name}", options, values=True)
    assert made.model.training
    assert next(iter(made.kwargs.values())).shape[0] == 2
    assert made.model(**made.kwargs).loss.isfinite()
    shapes = build(f"hf:{name}", options)
    assert all(each.is_meta for each in (*shapes.model.parameters(), *shapes.kwargs.values()))
    sizes = {path: each.shape for path, each in made.model.named_parameters()}
    assert sizes == {path: each.shape for path, each in shapes.model.named_parameters()}


def test_a_model_of_transformers_is_planned_without_weights(cli: Cli) -> None:
    options = ("--set", *TINY["gpt2"].split(), "--batch", "2", "--tokens", "8", "--inference")
    preset = ("-d", "2", "-c", "h100", "--preset", "megatron")
    found = cli("plan", "hf:gpt2", *options, *preset, "--json").json
    assert found["model"] == "GPT2LMHeadModel"
    assert not found["training"]
    shapes = {row["path"]: row["shape"] for row in found["tensors"]}
    assert shapes["transformer.wte.weight"] == [101, 16]
    assert shapes["input_ids"] == [2, 8]
    assert "labels" not in shapes


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("hf:gtp2", {}, r"no type of model .* \(did you mean 'gpt2'\?\)"),
        ("hf:bert-base-uncased", {}, r"\(did you mean 'bert'\?\)"),
        ("hf:gpt2", {"set_": ["n_layr=2"]}, r"no 'n_layr' \(did you mean 'n_layer'\?\)"),
        ("hf:gpt2", {"set_": ["n_layer=two"]}, r"n_layer='two': a whole number is expected"),
        ("hf:gpt2", {"set_": ["n_embd=10", "n_head=3"]}, r"hf:gpt2 cannot be built with these"),
        ("hf:gpt2", {"tokens": 4096}, r"n_positions=1024; add --set n_positions=4096"),
        ("hf:vit", {"tokens": 4}, r"reads images.*leave --tokens out"),
        ("hf:gpt2", {"arg": ["int64[2,2]"]}, r"arguments of its own; leave --arg out"),
        ("hf:wav2vec2", {}, r"no model of language or images.*path.py:function"),
    ],
)
def test_what_is_wrong_with_a_type_is_one_sentence(
    text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_(text, **options)
