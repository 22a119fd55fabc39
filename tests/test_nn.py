"""pysel/nn.py: the gate is the gate it says it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pysel
from pysel.nn import GumbelSelector


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GumbelSelector(), ValueError, "give num_samples or network, and not both"),
        (lambda: GumbelSelector(3, network=nn.Linear(2, 1)), ValueError, "give num_samples or network"),
        (lambda: GumbelSelector(0), ValueError, "num_samples must be at least 1, got 0"),
        (
            lambda: GumbelSelector(network=nn.Linear(2, 3))(torch.ones(4, 2)),
            ValueError,
            r"network must return \[4\] or \[4, 1\], got \[4, 3\]",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_table_gate() -> None:
    gate = GumbelSelector(1000, initial_logit=0.5)
    rows = torch.tensor([5, 999, 5])
    w = gate(rows, 0.7, key=pysel.key(2))
    assert w.shape == (3,) and ((w > 0) & (w < 1)).all()
    expected = pysel.ops.gumbel_sigmoid(torch.full((3,), 0.5), 0.7, key=pysel.key(2))
    assert torch.equal(w, expected)
    torch.testing.assert_close(gate.probabilities(rows), torch.sigmoid(torch.full((3,), 0.5)))
    assert gate.is_table


def test_table_gradient_is_sparse() -> None:
    gate = GumbelSelector(1_000_000)
    rows = torch.tensor([7, 3, 7])
    w = gate(rows, 0.5, key=pysel.key(0))
    w.sum().backward()
    (table,) = gate.parameters()
    assert table.grad is not None and table.grad.is_sparse
    gradient = table.grad.coalesce()
    assert gradient.indices().tolist() == [[3, 7]]
    slope = (w * (1 - w) / 0.5).detach()  # of the sigmoid
    torch.testing.assert_close(gradient.values().flatten(), torch.stack([slope[1], slope[0] + slope[2]]))


def test_making_a_gate_draws_nothing() -> None:
    before = torch.get_rng_state()
    GumbelSelector(10)
    assert torch.equal(before, torch.get_rng_state())


def test_hard_gate_and_tensor_temperature() -> None:
    gate = GumbelSelector(100)
    rows = torch.arange(100)
    w = gate(rows, torch.tensor(0.3), True, key=pysel.key(0))
    assert set(w.tolist()) == {0.0, 1.0}
    soft = gate(rows, 0.3, key=pysel.key(0))
    assert torch.equal(w.bool(), soft > 0.5)
    w.sum().backward()
    (table,) = gate.parameters()
    assert table.grad is not None and int(table.grad.coalesce().values().count_nonzero()) > 50


def test_network_gate() -> None:
    gate = GumbelSelector(network=nn.Linear(2, 1))
    x = torch.ones(4, 2)
    assert not gate.is_table
    assert gate.logits(x).shape == gate(x, key=pysel.key(0)).shape == (4,)
    gate(x, key=pysel.key(0)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())
