"""pysel/selection/learned/meta_weights.py: a step of the weighter is the one of the papers' formulas, and it helps."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import pysel
from pysel.selection import MetaWeighter, class_families, low_loss
from tests.test_asss import linear_network, noisy_task

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, meta_x = torch.randn(10, 4, generator=generator).double(), torch.randn(7, 4, generator=generator).double()
    return model, (x, torch.arange(10) % 3), (meta_x, torch.arange(7) % 3)


@pytest.mark.parametrize(
    "options", [{}, {"normalise": True}, {"families": [0, 1, 0]}, {"families": [1, 0, 2]}], ids=str
)
def test_its_gradient_is_that_of_differentiating_through_the_step(options: dict[str, Any]) -> None:
    model, (x, y), (meta_x, meta_y) = numbers()
    weighter = MetaWeighter(hidden=5, key=1, **options).double()
    before = copy.deepcopy(weighter.state_dict())
    with torch.no_grad():
        losses = F.cross_entropy(model(x), y, reduction="none")
    w = weighter(losses, y)
    scale = 10 / w.detach().sum() if options.get("normalise") else 1.0
    parameters = dict(model.named_parameters())
    step = torch.autograd.grad(
        (w * scale * F.cross_entropy(model(x), y, reduction="none")).mean(),
        list(parameters.values()),
        create_graph=True,
    )
    ahead = {name: p - 0.3 * g for (name, p), g in zip(parameters.items(), step, strict=True)}
    meta_loss = F.cross_entropy(functional_call(model, ahead, (meta_x,)), meta_y)
    wanted = torch.autograd.grad(meta_loss, list(weighter.parameters()))
    got = weighter.meta_step(model, (x, y), (meta_x, meta_y), 0.3)
    torch.testing.assert_close(got, meta_loss.detach())
    for parameter, gradient in zip(weighter.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
    assert any(not torch.equal(before[n], t) for n, t in weighter.named_parameters()), "it has moved"
    assert all(p.grad is None for p in model.parameters())


def test_weights_and_a_step_in_numpy() -> None:
    """Linear regression and one hidden unit, all by hand: weights, the step ahead, and the gradient of each number."""
    rng = np.random.default_rng(3)
    x, y, mx, my, t = (rng.normal(size=s) for s in ((6, 2), 6, (4, 2), 4, 2))
    weighter = MetaWeighter(hidden=1, weight_decay=0.0, key=4).double()
    with torch.no_grad():
        for parameter, value in zip(weighter.parameters(), (0.7, 0.2, -1.3, 0.4), strict=True):
            parameter.fill_(value)
    losses = (x @ t - y) ** 2
    hidden = np.maximum(0.7 * losses + 0.2, 0)
    w = 1 / (1 + np.exp(-(-1.3 * hidden + 0.4)))
    np.testing.assert_allclose(weighter.weigh(losses).numpy(), w, rtol=1e-12)

    each = 2 * (x @ t - y)[:, None] * x
    ahead = t - 0.2 * (w[:, None] * each).mean(0)
    by_weight = -0.2 / 6 * each @ (2 * (mx @ ahead - my)[:, None] * mx).mean(0)
    inner = by_weight * w * (1 - w)
    wanted = [(inner * -1.3 * losses).sum(), (inner * -1.3).sum(), (inner * hidden).sum(), inner.sum()]
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data.copy_(torch.from_numpy(t))
    batch, meta = ((torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, y), (mx, my)))
    meta_loss = weighter.meta_step(model, batch, meta, 0.2)
    np.testing.assert_allclose(float(meta_loss), ((mx @ ahead - my) ** 2).mean(), rtol=1e-10)
    np.testing.assert_allclose([float(p.grad) for p in weighter.parameters()], wanted, rtol=1e-8)


def test_families_have_heads_of_their_own() -> None:
    weighter = MetaWeighter(families=torch.tensor([0, 1, 1], dtype=torch.uint8), key=0)
    losses = torch.full((4,), 0.7)
    w = weighter.weigh(losses, np.array([0, 1, 2, 0]))
    assert w[1] == w[2] and w[0] == w[3] and w[0] != w[1]
    alone = MetaWeighter(key=0)
    assert alone.weigh(losses.tolist()).unique().numel() == 1
    mean = MetaWeighter(families=[0, 1, 1], normalise=True, key=0).weigh(losses, [0, 1, 2, 0])
    torch.testing.assert_close(mean.mean(), torch.tensor(1.0))
    torch.testing.assert_close(mean / mean[0], w / w[0])


def trained(noise: str, meta: str, **options: Any) -> tuple[float, float]:
    """Mean weight of right labels, and of wrong ones, after training with the weights."""
    x, y, wrong = noisy_task(0)
    clean_x, clean_y, _ = noisy_task(1, noise=0.0 if meta == "clean" else 0.3)
    if noise == "one-sided":  # only class 0 has wrong labels
        wrong, y = wrong & (y == 1), torch.where(wrong & (y == 0), 1 - y, y)
    model = linear_network(0)()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    weighter = MetaWeighter(lr=1e-2, key=0, **options)
    for epoch in range(20):
        if meta == "low loss":
            with torch.no_grad():
                rows = low_loss(F.cross_entropy(model(x), y, reduction="none"), y, per_class=50)
            clean_x, clean_y = x[rows], y[rows]
        for rows in pysel.permutation(600, key=pysel.fold_in(pysel.key(0), epoch)).split(100):
            weighter.meta_step(model, (x[rows], y[rows]), (clean_x, clean_y), optimiser)
            losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
            optimiser.zero_grad()
            (weighter.weigh(losses, y[rows] if weighter.families is not None else None) * losses).mean().backward()
            optimiser.step()
    with torch.no_grad():
        w = weighter.weigh(F.cross_entropy(model(x), y, reduction="none"), y)
    return float(w[~wrong].mean()), float(w[wrong].mean())


@pytest.mark.parametrize("meta", ["clean", "low loss"])
@pytest.mark.parametrize("options", [{}, {"normalise": True}, {"layers": "last"}, {"families": [0, 1]}], ids=str)
def test_wrong_labels_come_to_weigh_less(meta: str, options: dict[str, Any]) -> None:
    right, wrong = trained("even", meta, **options)
    assert wrong < 0.5 * right


def test_a_meta_set_as_wrong_as_the_data_teaches_nothing() -> None:
    """The control: the same training, and nothing that tells right labels from wrong."""
    right, wrong = trained("even", "noisy")
    assert wrong > 0.8 * right


def test_it_resumes_exactly(tmp_path: Path) -> None:
    def run(stop: int | None) -> Tensor:
        model, batch, meta = numbers()
        weighter = MetaWeighter(families=[0, 1, 1], lr=0.05, key=0).double()
        for step in range(6):
            if step == stop:
                torch.save(weighter.state_dict(), tmp_path / "state.pt")
                weighter = MetaWeighter(families=[0, 1, 1], lr=0.05, key=9).double()
                weighter.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            weighter.meta_step(model, batch, meta, 0.3)
        return weighter.weigh(torch.arange(3.0), torch.arange(3))

    assert torch.equal(run(None), run(3))


def test_it_is_a_function_of_its_key_and_draws_nothing_else() -> None:
    before = torch.get_rng_state()
    losses = torch.rand(5, generator=torch.Generator().manual_seed(0))
    first, again, other = (MetaWeighter(key=k).weigh(losses) for k in (0, pysel.key(0), 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert float(first.min()) > 0.2 and float(first.max()) < 0.8


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_around_it_change_nothing(around: Any) -> None:
    model, batch, meta = numbers()
    plain, inside = MetaWeighter(key=0).double(), MetaWeighter(key=0).double()
    wanted = plain.meta_step(model, batch, meta, 0.3)
    with around():
        got = inside.meta_step(model, batch, meta, 0.3)
    assert torch.equal(got, wanted) and torch.equal(inside.weight, plain.weight)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w, m, b, d: MetaWeighter(hidden=0), ValueError, "MetaWeighter: hidden must be at least 1"),
        (lambda w, m, b, d: MetaWeighter(lr=-1), ValueError, "MetaWeighter: lr must be positive"),
        (lambda w, m, b, d: MetaWeighter(layers="first"), ValueError, "layers must be all or last"),
        (lambda w, m, b, d: MetaWeighter(families=[0.5]), TypeError, "families must be integers"),
        (lambda w, m, b, d: MetaWeighter(families=[-1, 0]), ValueError, "families must be 0 or more"),
        (lambda w, m, b, d: w.weigh(torch.rand(3)), ValueError, "labels must be given with families"),
        (lambda w, m, b, d: w.weigh(torch.rand(3), [0, 1, 3]), ValueError, "labels must be between 0 and 2"),
        (lambda w, m, b, d: w.weigh([1.0, float("nan")], [0, 1]), ValueError, "losses must be finite"),
        (lambda w, m, b, d: w.weigh(torch.rand(3, 1), [0, 1, 2]), ValueError, "losses must be"),
        (lambda w, m, b, d: w.meta_step(m, b, d, float("nan")), ValueError, "meta_step: lr must be"),
        (lambda w, m, b, d: w.meta_step(m, b, d, 0.1, trusted=0), ValueError, "trusted must be in"),
        (lambda w, m, b, d: w.meta_step(m, b, (d[0], d[1][:2]), 0.1), ValueError, "meta_batch must have as many"),
        (lambda w, m, b, d: w.meta_step(m, b, d, 0.1, loss=F.cross_entropy), ValueError, "loss must return one number"),
        (lambda w, m, b, d: w.meta_step(m, (b[0] * 1e308, b[1]), d, 0.1), ValueError, "loss must be finite"),
        (lambda w, m, b, d: class_families([1.5]), TypeError, "class_sizes must be integers"),
        (lambda w, m, b, d: class_families([1, 2], 0), ValueError, "num_families must be at least 1"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    model, batch, meta = numbers()
    weighter = MetaWeighter(families=[0, 1, 1], key=0).double()
    before = copy.deepcopy(weighter.state_dict())
    with pytest.raises(error, match=message):
        call(weighter, model, batch, meta)
    assert all(torch.equal(before[name], t) for name, t in weighter.named_parameters())


def test_several_rates_of_an_optimiser_need_a_number() -> None:
    model, batch, meta = numbers()
    groups = [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), (0.1, 0.2, 0.1, 0.1), strict=True)]
    with pytest.raises(ValueError, match=r"lr must be a number where an optimiser has several, got \[0\.1, 0\.2\]"):
        MetaWeighter(key=0).double().meta_step(model, batch, meta, torch.optim.SGD(groups))


@pytest.mark.parametrize("seed", range(5))
def test_families_are_the_best_there_are(seed: int) -> None:
    """Against all ways to cut the sorted sizes into three."""
    rng = np.random.default_rng(seed)
    sizes = np.round(rng.lognormal(5, 2, size=9)).astype(np.int64)
    family = class_families(sizes, 3).numpy()

    def cost(parts: list[np.ndarray]) -> float:
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    ordered = np.sort(sizes).astype(np.float64)
    least = min(cost([ordered[:i], ordered[i:j], ordered[j:]]) for i, j in itertools.combinations(range(1, 9), 2))
    assert cost([sizes[family == k] for k in range(3)]) == pytest.approx(least)
    assert [sizes[family == k].max() for k in range(2)] < [sizes[family == k].min() for k in (1, 2)]
    assert class_families([5, 5, 5]).tolist() == [0, 0, 0] and class_families([5, 9]).tolist() == [0, 1]
