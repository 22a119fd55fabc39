"""pysel.plot: what the pictures show, read off the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pysel import plot
from pysel.selection import DynamicSelector


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
    assert lines["the rare quarter"][1] == pytest.approx(100 * selector.stats()["coverage"]["rare"])
    with pytest.raises(ValueError, match="coverage: selector must be made from features"):
        plot.coverage(DynamicSelector.from_scores(torch.rand(9), torch.rand(9), 0.5, 3))


def test_plane_colours_the_subset(made: tuple[DynamicSelector, Tensor]) -> None:
    selector, _ = made
    figure = plot.plane(selector, (0, 4))
    shown = [[len(points.get_offsets()) for points in axes.collections] for axes in figure.axes]
    assert shown == [[240, 60], [0, 300]], "left out, in the subset"


def test_factor_cards_show_the_samples_that_activate_most(made: tuple[DynamicSelector, Tensor], tmp_path: Path) -> None:
    selector, features = made
    assert selector.sae is not None and selector.factors is not None
    drawn: list[int] = []
    figure = plot.factors(selector, features, lambda axes, i: drawn.append(i), which=(3, 5), top=4)
    with torch.no_grad():
        values, indices = selector.sae.encode(features)
    dense = torch.zeros(300, 16).scatter(1, indices, values)
    wanted = [i for j in (3, 5) for i in dense[:, j].argsort(descending=True)[:4].tolist() if dense[i, j] > 0]
    assert drawn == wanted and len(figure.axes) == 8
    plot.factors(selector, features.numpy(), lambda axes, i: axes.text(0, 0, str(i))).savefig(tmp_path / "cards.png")
    assert (tmp_path / "cards.png").stat().st_size > 0
