"""Why a model could not be captured, in terms of its own code: file, line, and the edit to make."""

from __future__ import annotations

import traceback

from torch import nn

from autoplan.cleanup.places import is_users
from autoplan.errors import CaptureError


def explain(error: Exception, model: nn.Module) -> CaptureError:
    """The CaptureError that says where `error` comes from and what to change."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(frame.filename)]
    place, inside = "", ""
    if own:
        place = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}"
        after = frames[frames.index(own[-1]) + 1 :]
        modules = [frame for frame in after if "/torch/nn/modules/" in frame.filename]
        layers = [frame for frame in modules if not frame.filename.endswith("/module.py")]
        if layers:
            name = layers[-1].filename.rsplit("/", 1)[-1]
            inside = f" (in torch's {name}:{layers[-1].lineno}: {layers[-1].line})"
    what, fix = _reason(
        error, {frame.name for frame in frames}, inside, own[-1].line or "" if own else ""
    )
    return CaptureError(
        f"{type(model).__name__} could not be captured{place}{inside}; {what}. {fix}"
    )


_SETTINGS = {
    "layerdrop": "layerdrop=0",
    "expert_hit": "_experts_implementation='batched_mm' (or 'grouped_mm')",
}
"""Words of a line that branches on data -> the setting of transformers that avoids it."""


def _reason(error: Exception, functions: set[str], layer: str, line: str) -> tuple[str, str]:
    """What went wrong, and what to do."""
    text = str(error).strip()
    first = (text.splitlines()[0] if text else type(error).__name__).rstrip(".")
    packed = "pack_padded_sequence" in functions or "pack_sequence" in functions
    if packed or (isinstance(error, TypeError) and "rnn.py" in layer):
        return (
            "the shape of a PackedSequence depends on data",
            "Give the recurrent layer the padded batch, and mask its outputs instead.",
        )
    for word, setting in _SETTINGS.items():
        if word in line:
            return "the model branches on numbers there", f"Set {setting} in its config."
    if "exported program constant" in text:
        return (
            "a tensor is written to behind autograd's back, through .data or an alias of it",
            "Write to the tensor itself under torch.no_grad(), or out of place.",
        )
    if "_ctc_loss" in text:
        return (
            "its loss selects labels by a mask, so that their number depends on data",
            "Call the model without labels, and F.ctc_loss(log_probs, padded labels, lengths) "
            "outside.",
        )
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return (
            "a tensor's value is needed there as a Python number or condition, and a plan cannot "
            "branch on data",
            "Use torch.where or a mask, give the value to forward as a plain argument, or compute "
            "it outside the model. For a check of values use torch._assert_async, or an "
            "`if ...: raise` of its own, which is left out.",
        )
    if "not a known type" in text or "Unsupported input type" in text:
        return (
            first,
            "Register the class with torch.utils._pytree.register_pytree_node, or use tensors and "
            "plain containers.",
        )
    if ".numpy()" in text or "numpy" in functions:
        return first, "Stay in torch: a planned model cannot pass through NumPy."
    if isinstance(error, TypeError):
        return first, "Check that args and kwargs are what the model's forward takes."
    return (
        first,
        "Run model(*args, **kwargs) once without autoplan: it must work on fake tensors too.",
    )
