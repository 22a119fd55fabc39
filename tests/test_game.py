"""pysel/selection/learned/game.py: what a step costs, and the terms of the two losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import pysel
from pysel.random import fold_in
from pysel.selection.learned import information
from tests.learned import best_only
from tests.test_asss import linear_network, noisy_task

pytestmark = pytest.mark.usefixtures("one_thread")

# read or write single places of a table, by index or by the places of a sparse gradient
BY_PLACE = {"aten::embedding", "aten::index_put_", "aten::_index_put_impl_", "aten::index", "aten::sparse_mask"}


class Elements(TorchDispatchMode):
    """The most elements of a dense tensor that any op goes through as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = func._schema.name, func(*args, **(kwargs or {}))
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        by_place = name in BY_PLACE or (name == "aten::add_" and given[-1].layout == torch.sparse_coo)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not by_place and not is_view:
            self.most = max([self.most, *(t.numel() for t in (*given, *made) if t.layout == torch.strided)])
        return result


@pytest.mark.parametrize("table", [True, False], ids=["table", "network"])
def test_a_step_costs_the_batch_and_not_the_data(table: bool) -> None:
    n = 1_000_000
    x, y, _ = noisy_task(0, n=64)
    batch = (torch.arange(0, n, n // 64)[:64], x, y)
    selector = best_only(0.5, warmup_epochs=0, selector="table" if table else "network", key=0)
    selector.start(linear_network(0), n)
    selector.step(batch)  # which makes the tables
    with Elements() as touched:
        selector.step(batch)
    assert 64 <= touched.most <= 64 * 64, "at most a batch of the widest layer"


def test_the_selectors_gradient_is_that_of_its_loss() -> None:
    """One step by hand for each form of the losses, in terms of gates drawn by the documented keys."""
    x, y, _ = noisy_task(0, n=40)
    for options in (
        {},
        {"normalise": True},
        {"sparsity": "absolute"},
        {"game": "adversarial"},
        {"attenuation": "input", "sparsity": "mean"},
        {"hard": True},
    ):
        logits = torch.randn(40, generator=torch.Generator().manual_seed(1))
        selector = best_only(0.3, warmup_epochs=0, tau=0.7, sparsity_weight=3.0, key=5, **options)
        selector.start(linear_network(0), 40)
        selector.step((torch.arange(40), x, y))
        game = selector._game
        assert game is not None
        table = next(game.gate.parameters())
        with torch.no_grad():
            table.copy_(logits[:, None])
        caught: list[Tensor] = []
        game.selector_optimiser.register_step_pre_hook(
            lambda *_, table=table, caught=caught: caught.append(table.grad.to_dense().flatten())
        )
        task = game.tasks[0]
        with torch.no_grad():
            each = F.cross_entropy(task(x), y, reduction="none")  # as the task network is trained on them
        selector.step((torch.arange(40), x, y))

        s = logits.clone().requires_grad_()
        w = pysel.gumbel_sigmoid(s, 0.7, options.get("hard", False), key=fold_in(fold_in(pysel.key(5), 1), 3))
        if options.get("attenuation") == "input":
            fidelity = F.cross_entropy(task(x * w[:, None]), y)
        else:
            fidelity = (w * each).sum() / (w.sum() if options.get("normalise") else 40)
        mean = torch.sigmoid(s).mean()
        sparsity = {"absolute": (mean - 0.3).abs(), "mean": mean}.get(options.get("sparsity", ""), (mean - 0.3) ** 2)
        sign = -1 if options.get("game") == "adversarial" else 1
        wanted = torch.autograd.grad(sign * fidelity + 3.0 * sparsity, s)[0]
        torch.testing.assert_close(caught[0], wanted, msg=str(options))


def test_budgets_of_khot_gates_leave_no_sparsity_term() -> None:
    """Only differences of logits count: their sum never moves, whatever the keep ratio."""
    x, y, _ = noisy_task(0, n=40)
    selector = best_only(0.3, warmup_epochs=0, gate="khot", selector_lr=1e-3, key=5).start(linear_network(0), 40)
    for _ in range(3):
        selector.step((torch.arange(40), x, y))
    game = selector._game
    assert game is not None and game.selector_optimiser.param_groups[0]["lr"] == 1e-3
    selector.finish([(torch.arange(40), x, y)])
    assert float(selector.probabilities.sum()) == pytest.approx(12, abs=1e-4) and len(selector) == 12


def test_lookahead_is_judged_by_the_other_half() -> None:
    """The task network that a sample is judged by is not trained on it: a label learned by heart helps nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 200, generator=generator), torch.randint(2, (60,), generator=generator)

    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Linear(200, 2)

    own = best_only(0.5, epochs=30, warmup_epochs=30, key=0).fit(x, y, network).importances().loss
    crossed = (
        best_only(0.5, epochs=30, warmup_epochs=30, fidelity="lookahead", key=0).fit(x, y, network).importances().loss
    )
    assert float(own.mean()) < 0.05 and float(crossed.mean()) > 0.6


def test_lookahead_needs_held_out_labels_that_are_right() -> None:
    """Wrong labels in both parts: their pulls cancel where the network has settled, unless few of them are trusted."""
    x, y, wrong = noisy_task(0)
    clean_x, clean_y, _ = noisy_task(1, noise=0.0)

    def share(**options: Any) -> float:
        held_out = options.pop("held_out", None)
        selector = best_only(0.5, batch_size=100, fidelity="lookahead", key=0, **options)
        return float(wrong[selector.fit(x, y, linear_network(0), held_out=held_out).select()].float().mean())

    assert share(held_out=(clean_x, clean_y)) < 0.02
    assert share(trusted=1.0) > 0.2
    assert share() < 0.02


def test_information_of_a_selection() -> None:
    assert information(torch.tensor([0.0, 1.0, 1.0, 0.0])) == pytest.approx(1.0)
    assert information(torch.full((5,), 0.3)) == pytest.approx(0.0, abs=1e-12)
    p = torch.tensor([0.25, 0.75])
    h = -(0.25 * torch.tensor(0.25).log2() + 0.75 * torch.tensor(0.75).log2())
    assert information(p) == pytest.approx(1 - float(h), abs=1e-6)
