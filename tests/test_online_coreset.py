"""pysel/selection/stream/online_coreset.py: cosines of autograd's gradients, and who is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pysel.selection.stream import OnlineCoreset
from tests.streams import C, D, arrivals, check, same_state

pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(layer: nn.Linear, features: Tensor, labels: Tensor) -> np.ndarray:
    """Of each sample's loss for the layer's weight, by autograd, one sample after the other."""
    found = []
    for row, label in zip(features, labels, strict=True):
        loss = nn.functional.cross_entropy(layer(row[None]), label[None])
        found.append(torch.autograd.grad(loss, layer.weight)[0].flatten().numpy())
    return np.stack(found)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6))


def own(g: np.ndarray) -> np.ndarray:
    mean = g.mean(0)
    return np.array([cosine(mean, one) - np.mean([cosine(other, one) for other in g]) for one in g])


@pytest.mark.parametrize("tau", [0.0, 1.0, 1000.0])
def test_picks_and_memory_by_autograd(tau: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(D, C, bias=False).double()
    selector = OnlineCoreset(C, D, 8, batch_size=5, tau=tau, key=0)
    reference, held = np.zeros(C * D), {}
    features, labels = torch.randn(90, D, dtype=torch.float64), torch.arange(90) * 7 % C
    for start in range(0, 90, 15):
        x, y = features[start : start + 15], labels[start : start + 15]
        mask = selector.offer(layer(x), y, features=x)
        g = gradients(layer, x, y)
        rank = own(g) + tau * np.array([cosine(reference, one) for one in g])
        picks = np.argsort(-rank, kind="stable")[:5]
        assert sorted(picks) == torch.nonzero(mask).flatten().tolist()
        held |= {start + i: (int(y[i]), own(g)[i]) for i in sorted(picks)}
        while len(held) > 8:  # the worst of the class that has most goes
            sizes = np.bincount([c for c, _ in held.values()], minlength=C)
            worst = min((r, i) for i, (c, r) in held.items() if sizes[c] == sizes.max())[1]
            del held[worst]
        sizes = np.bincount([c for c, _ in held.values()], minlength=C)
        mine = np.bincount(selector.labels.numpy(), minlength=C)
        assert sorted(sizes) == sorted(mine), "class-fair"
        for c in range(C):  # of each class the best, of all that were picked and could stay
            ranks = {i: r for i, (k, r) in held.items() if k == c}
            kept = [i for i in selector.indices.tolist() if int(labels[i]) == c]
            common = min(len(ranks), len(kept))
            best = sorted(ranks, key=lambda i: -ranks[i])[:common]
            assert set(best) <= set(kept), "by the ranking, not by chance"
        held = {i: (int(labels[i]), held[i][1] if i in held else np.nan) for i in selector.indices.tolist()}
        if start == 45:
            with torch.no_grad():
                layer.weight += 0.3
            x, y = features[selector.indices], selector.labels
            selector.refresh(layer(x), features=x)
            g = gradients(layer, x, y)
            reference = g.mean(0)
            held = {i: (int(labels[i]), r) for i, r in zip(selector.indices.tolist(), own(g), strict=True)}
        elif any(np.isnan(r) for _, r in held.values()):
            break  # a tie in class sizes was settled otherwise
    assert start >= 60


def test_it_holds_to_what_every_method_for_streams_does(tmp_path: Path) -> None:
    for draw in ("uniform", "uses"):
        check(lambda key, draw=draw: OnlineCoreset(C, D, 12, batch_size=6, tau=2.0, draw=draw, key=key), tmp_path)


def test_a_sample_is_held_once() -> None:
    selector = OnlineCoreset(C, D, 100, batch_size=20, key=0)
    for _ in range(3):
        assert selector.offer(**arrivals(0), indices=range(20)).all()
    assert selector.indices.tolist() == list(range(20))


def test_the_scale_of_features_does_not_matter() -> None:
    one, other = (OnlineCoreset(C, D, 9, batch_size=4, key=0) for _ in range(2))
    for step in range(4):
        batch = arrivals(step)
        huge = {**batch, "features": batch["features"] * 2.0**1000}
        assert one.offer(**batch).tolist() == other.offer(**huge).tolist()
        z, h = np.ones((len(one), 1)) * [0, 1, 2], np.ones((len(one), 1)) * [0, 1, 2, 3]
        one.refresh(z, features=h)
        other.refresh(z, features=h * 2.0**1000)
    assert one.indices.tolist() == other.indices.tolist()


def test_no_gradient_is_no_reason_for_nan() -> None:
    """Samples that are learned, features of zeros, one sample alone."""
    selector = OnlineCoreset(C, D, 9, batch_size=4, key=0)
    sure = np.eye(C)[[0, 1, 2, 0, 1]] * 1e4
    assert selector.offer(sure, [0, 1, 2, 0, 1], features=np.zeros((5, D))).sum() == 4
    assert selector.offer(sure[:1], [0], features=np.ones((1, D))).tolist() == [True]
    selector.refresh(np.zeros((5, C)), features=np.zeros((5, D)))
    assert selector.offer(**arrivals(0)).sum() == 4


def test_what_is_refused_changes_nothing() -> None:
    selector = OnlineCoreset(C, D, 9, batch_size=4, key=0)
    with pytest.raises(ValueError, match=r"OnlineCoreset.refresh: nothing is held yet: call offer\(\) first"):
        selector.refresh(np.zeros((0, C)), features=np.zeros((0, D)))
    selector.offer(**arrivals(0))
    before, good = selector.state_dict(), arrivals(1)
    held = len(selector)
    h, z = np.ones((held, D)), np.zeros((held, C))
    bad: list[tuple[Any, str]] = [
        (lambda: selector.offer(**{**good, "features": None}), "offer: features must be given"),
        (lambda: selector.offer(**{**good, "features": good["features"][:, 1:]}), r"offer: features must be \[20, 4\]"),
        (lambda: selector.offer(**{**good, "features": good["features"] * np.nan}), "offer: features must be finite"),
        (lambda: selector.refresh(), "refresh: logits must be given"),
        (lambda: selector.refresh(z), "refresh: features must be given"),
        (lambda: selector.refresh(z[1:], features=h), rf"refresh: logits must be \[{held}, 3\]"),
        (lambda: selector.refresh(z, features=h[1:]), rf"refresh: features must be \[{held}, 4\]"),
        (lambda: selector.refresh(z * np.nan, features=h), "refresh: logits must be finite"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=f"OnlineCoreset.{message}"):
            call()
        assert same_state(selector.state_dict(), before), message
