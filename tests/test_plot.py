"""pysel.plot: what the pictures show, read off the figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pysel import plot
from pysel.selection import ASSS, DynamicSelector
from tests.learned import best_only
from tests.test_asss import linear_network, noisy_task


@pytest.fixture(scope="module")
def made() -> tuple[DynamicSelector, Tensor]:
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    selector = DynamicSelector.from_features(
        features, 0.2, 5, num_factors=16, k=2, sae_options={"epochs": 2}, refine=0.4, key=0
    )
    return selector, features


def test_usage_shows_the_share_of_samples() -> None:
    figure = plot.usage({"one": torch.tensor([0, 0, 1, 3]), "two": torch.tensor([2, 2, 2, 2])})
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[50, 25, 0, 25], [0, 0, 100]]
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    figure = plot.usage(np.array([0, 0, 1, 3], np.uint8))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [50, 25, 0, 25]
    with pytest.raises(TypeError, match=r"usage: uses must be integers, got torch.float32"):
        plot.usage(torch.ones(3))
    with pytest.raises(TypeError, match=r"usage: uses\['a'\] must be integers, got torch.float32"):
        plot.usage({"a": torch.ones(3)})


def test_the_default_device_is_the_callers(made: tuple[DynamicSelector, Tensor]) -> None:
    selector, features = made
    with torch.device("meta"):
        plot.usage(selector.uses)
        plot.coverage(selector, [1])
        plot.plane(selector, (0, 4))
        plot.factors(selector, features, lambda axes, i: None, top=4)
        assert selector.explain(3)["factors"]


def test_coverage_is_that_of_the_subsets(made: tuple[DynamicSelector, Tensor]) -> None:
    selector, _ = made
    selector.select(1)
    figure = plot.coverage(selector)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert all(len(values) == 5 and values[-2:] == pytest.approx([100, 100]) for values in lines.values())
    assert selector.stats()["epochs"] == 2, "left where it was"
    for kind in ("common", "rare"):
        assert lines[f"the {kind} quarter"][1] == pytest.approx(100 * selector.stats()["coverage"][kind])
    assert all(list(line.get_xdata()) == [1, 2, 3, 4, 5] for line in figure.axes[0].lines)
    with pytest.raises(ValueError, match="coverage: selector must be made from features"):
        plot.coverage(DynamicSelector.from_scores(torch.rand(9), torch.rand(9), 0.5, 3))


def test_plane_colours_the_subset(made: tuple[DynamicSelector, Tensor]) -> None:
    selector, _ = made
    figure = plot.plane(selector, (0, 4))
    shown = [[len(points.get_offsets()) for points in axes.collections] for axes in figure.axes]
    assert shown == [[240, 60], [0, 300]], "left out, in the subset"


def test_factor_cards_show_the_samples_that_activate_most(made: tuple[DynamicSelector, Tensor]) -> None:
    selector, features = made
    assert selector.sae is not None and selector.factors is not None
    drawn: list[int] = []
    figure = plot.factors(selector, features, lambda axes, i: drawn.append(i), which=(3, 5), top=4)
    with torch.no_grad():
        values, indices = selector.sae.encode(features)
    dense = torch.zeros(300, 16).scatter(1, indices, values)
    wanted = [i for j in (3, 5) for i in dense[:, j].argsort(descending=True)[:4].tolist() if dense[i, j] > 0]
    assert drawn == wanted and len(figure.axes) == 8
    drawn.clear()
    figure = plot.factors(selector, features.numpy(), lambda axes, i: drawn.append(i), top=20)
    counts = (dense > 0).sum(0).tolist()
    known = sorted((j for j in range(16) if counts[j] >= 20), key=lambda j: -counts[j])
    assert len(known) > 8  # so that some are left out between the commonest and the rarest
    shown = known[:4] + known[-4:]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[::20] == [f"factor {j}: {100 * counts[j] / 300:.2g} %" for j in shown]
    assert drawn == [i for j in shown for i in dense[:, j].argsort(descending=True, stable=True)[:20].tolist()]
    with pytest.raises(ValueError, match=f"factors: top must be at most {max(counts)}, .*, got 300"):
        plot.factors(selector, features, lambda axes, i: None, top=300)


# --- learned selections -----------------------------------------------------------------


@pytest.fixture(scope="module")
def learned() -> tuple[ASSS, Tensor, Tensor]:
    x, y, wrong = noisy_task(0, n=200)
    return best_only(0.5, batch_size=50, key=0).fit(x, y, linear_network(0)), x, wrong


def test_probabilities_are_counted_in_the_subset_and_outside(learned: tuple[ASSS, Tensor, Tensor]) -> None:
    figure = plot.probabilities(learned[0], bins=20)
    heights = [sum(bar.get_height() for bar in group) for group in figure.axes[0].containers]
    assert heights == [100, 100]
    p = learned[0].probabilities
    first = [group[0].get_height() for group in figure.axes[0].containers]
    assert sum(first) == int((p < 0.05).sum()) and first[1] == 0, "the least likely are left out"


def test_history_shows_each_epoch(learned: tuple[ASSS, Tensor, Tensor]) -> None:
    figure = plot.history(learned[0])
    lines = {axes.get_ylabel(): axes.lines[0] for axes in figure.axes}
    entries = learned[0].history
    assert list(lines["task loss"].get_ydata()) == [entry["task_loss"] for entry in entries]
    assert list(lines["% of the subset new"].get_xdata()) == list(range(2, 21)), "the first has none before it"
    assert list(lines["% of the subset new"].get_ydata()) == [100 * entry["turnover"] for entry in entries[1:]]
    with pytest.raises(ValueError, match="history: selector must have been fitted"):
        plot.history(best_only(0.5))


def test_trade_off_and_bottleneck_show_how_it_ended(learned: tuple[ASSS, Tensor, Tensor]) -> None:
    x, y, _ = noisy_task(0, n=200)
    by_weight = {
        w: best_only(0.5, epochs=4, sparsity_weight=w, key=0).fit(x, y, linear_network(0)) for w in (100.0, 1.0)
    }
    figure = plot.trade_off(by_weight)
    for axes, name in zip(figure.axes, ("task_loss", "mean_probability"), strict=True):
        assert list(axes.lines[0].get_xdata()) == [1, 100] and axes.get_xscale() == "log"
        assert list(axes.lines[0].get_ydata()) == [by_weight[w].history[-1][name] for w in (1.0, 100.0)]
    figure = plot.bottleneck({"one": learned[0], "other": by_weight[1.0]})
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [entry["information"] for entry in learned[0].history]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "other"]
    assert len(plot.bottleneck(learned[0]).axes[0].lines) == 1


def test_dropped_shows_which_samples_go(learned: tuple[ASSS, Tensor, Tensor]) -> None:
    selector, x, wrong = learned
    figure = plot.dropped(selector, {"wrong": wrong, "distance": x[:, 0].abs(), "half of it": x[:, 0].abs().half()})
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    out = torch.ones(200, dtype=torch.bool)
    out[selector.select()] = False
    assert heights[0] == pytest.approx([100 * float(out[among].double().mean()) for among in (~wrong, wrong)])
    assert heights[0][1] > 95
    nearest = x[:, 0].abs().argsort(stable=True)[:20]
    assert len(heights[1]) == 10 and heights[1][0] == pytest.approx(100 * float(out[nearest].double().mean()))
    assert len(heights[2]) == 10
    for quantity, error in ((torch.ones(3), ValueError), (torch.ones(3).bool(), ValueError), ("abc", TypeError)):
        with pytest.raises(error, match=r"dropped: quantities\['a'\] must"):
            plot.dropped(selector, {"a": quantity})
