"""What README.md takes as given: the reader's model and batch, and an op of the reader's own."""

import torch

from tests.models import VOCABULARY, gpt2

torch.manual_seed(0)
model = gpt2(n_layer=4).float()
ids = torch.randint(0, VOCABULARY, (16, 8))


@torch.library.custom_op("mylib::project", mutates_args=())
def project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x @ weight.T + bias


@project.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx, gradient):
    x, weight = ctx.saved_tensors
    rows = gradient.flatten(0, -2)
    return gradient @ weight, rows.T @ x.flatten(0, -2), rows.sum(0)


project.register_autograd(_backward, setup_context=_keep)
x, weight, bias = torch.randn(6, 5, 8), torch.randn(7, 8), torch.randn(7)
