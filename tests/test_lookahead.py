"""pysel/selection/learned/lookahead.py: the gradient is that of a step differentiated through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from pysel.selection.learned.lookahead import default_loss, lookahead, low_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def data(seed: int = 0, n: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def model(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3)).double()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
    return made


def double_backward(
    network: nn.Module, batch: Any, weights: Tensor, held_out: Any, lr: float, names: set[str], loss: Any
) -> tuple[Tensor, Tensor]:
    """The same by keeping the graph of the step and going back through it."""
    weights = weights.clone().requires_grad_()
    parameters = dict(network.named_parameters())
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    losses = loss(functional_call(network, (parameters, buffers), (batch[0],)), batch[1])
    taken = {name: parameters[name] for name in names}
    step = torch.autograd.grad((weights * losses).mean(), list(taken.values()), create_graph=True)
    ahead = {name: p - lr * g for (name, p), g in zip(taken.items(), step, strict=True)}
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    after = loss(functional_call(network, ({**parameters, **ahead}, buffers), (held_out[0],)), held_out[1]).mean()
    return torch.autograd.grad(after, weights)[0], after.detach()


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("lr", [1e-3, 0.5])
@pytest.mark.parametrize(
    "middle",
    [
        (nn.Tanh(),),
        (nn.BatchNorm1d(8), nn.ReLU()),
        (nn.LayerNorm(8), nn.GELU()),
        (nn.Unflatten(1, (2, 4)), nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Flatten()),
    ],
    ids=["tanh", "batch norm", "layer norm", "attention"],
)
def test_it_is_the_double_backward(middle: tuple[nn.Module, ...], lr: float, layers: str) -> None:
    network, batch, held_out = model(*middle), data(0), data(1, n=7)
    weights = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    names = {name for name, _ in network.named_parameters()}
    if layers == "last":
        names = {name for name in names if name.startswith(f"{len(middle) + 1}.")}
    loss = default_loss(batch[1])
    before = {name: t.clone() for name, t in network.state_dict().items()}
    got, after = lookahead(network, loss, batch, weights, held_out, lr, layers=layers)
    with sdpa_kernel(SDPBackend.MATH):  # the fused one cannot go back twice
        wanted, wanted_after = double_backward(network, batch, weights, held_out, lr, names, loss)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(after, wanted_after)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items()), "the model is left as it was"
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not got.requires_grad


def test_frozen_parameters_take_no_step() -> None:
    network, batch, held_out = model(nn.Tanh()), data(0), data(1, n=7)
    network[0].requires_grad_(False)
    weights, loss = torch.ones(12, dtype=torch.float64), default_loss(batch[1])
    got, _ = lookahead(network, loss, batch, weights, held_out, 0.5)
    last, _ = lookahead(network, loss, batch, weights, held_out, 0.5, layers="last")
    assert torch.equal(got, last)


def test_linear_regression_by_hand() -> None:
    """In numpy: losses (x_i t - y_i)^2, their gradients 2 (x_i t - y_i) x_i."""
    rng = np.random.default_rng(0)
    x, y, hx, hy, t, w = (rng.normal(size=s) for s in ((6, 4), 6, (5, 4), 5, 4, 6))
    lr = 0.3
    each = 2 * (x @ t - y)[:, None] * x
    ahead = t - lr * (w[:, None] * each).mean(0)
    slope = (2 * (hx @ ahead - hy)[:, None] * hx).mean(0)
    network = nn.Linear(4, 1, bias=False).double()
    network.weight.data.copy_(torch.from_numpy(t))
    batch, held_out = ((torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, y), (hx, hy)))
    got, after = lookahead(network, default_loss(batch[1]), batch, torch.from_numpy(w), held_out, lr)
    np.testing.assert_allclose(got.numpy(), -lr / 6 * each @ slope, rtol=1e-10)
    np.testing.assert_allclose(float(after), ((hx @ ahead - hy) ** 2).mean(), rtol=1e-10)
    # the trusted part of the held-out samples: 3 of 5
    near = np.sort(np.argsort((hx @ ahead - hy) ** 2)[:3])
    slope = (2 * (hx @ ahead - hy)[:, None] * hx)[near].mean(0)
    got, _ = lookahead(network, default_loss(batch[1]), batch, torch.from_numpy(w), held_out, lr, trusted=0.6)
    np.testing.assert_allclose(got.numpy(), -lr / 6 * each @ slope, rtol=1e-10)


def test_a_model_without_a_linear_layer_has_no_last_one() -> None:
    x = torch.randn(3, 1, 8)
    with pytest.raises(ValueError, match="lookahead: layers must be 'all' for a model without"):
        lookahead(nn.Conv1d(1, 1, 3), lambda o, y: o.mean((1, 2)), (x, x), torch.ones(3), (x, x), 0.1, layers="last")


def test_low_losses_of_each_class() -> None:
    losses = torch.tensor([0.3, 0.1, 0.2, 0.9, 0.8, 0.7, 0.1])
    labels = torch.tensor([5, 5, 5, 2, 2, 2, 9], dtype=torch.uint8)
    assert low_loss(losses, labels, per_class=2).tolist() == [1, 2, 4, 5, 6]
    assert low_loss(losses, labels, share=1 / 3).tolist() == [1, 5, 6]
    assert low_loss(losses, None, share=0.5).tolist() == [0, 1, 2, 6]
    assert low_loss(losses, losses, share=1.0).tolist() == list(range(7))


def test_losses_are_one_number_a_sample() -> None:
    x = torch.randn(4, 3)
    y = torch.arange(4) % 3
    assert torch.equal(default_loss(y)(x, y), F.cross_entropy(x, y, reduction="none"))
    torch.testing.assert_close(default_loss(x)(x, torch.zeros(4, 3)), x.square().mean(1))
    torch.testing.assert_close(default_loss(x)(x[:, :1], torch.zeros(4)), x[:, 0].square())
