"""Pictures of a selection: how evenly samples are used, which factors a subset covers, where it lies between common and
rare, and what a factor is about.

Each function returns a matplotlib figure, which shows itself in a notebook and has ``savefig``; matplotlib comes with
``pip install pysel[plot]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pysel import _inputs
from pysel.selection import DynamicSelector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coverage", "factors", "plane", "usage"]

_POINTS = 20_000  # that a scatter shows


def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def usage(uses: Any) -> Figure:
    """How many samples were used how often.

    Args:
        uses: integers [N], such as `DynamicSelector.uses`, or several of them by name.

    Example:
        >>> usage({"even": torch.full((10,), 3), "uneven": torch.arange(10)}).axes[1].get_title()
        'uneven'
    """
    given = uses if isinstance(uses, Mapping) else {"": uses}
    named = {
        name: _inputs.integers("usage", f"uses[{name!r}]" if name else "uses", counts).long()
        for name, counts in given.items()
    }
    figure, axes = _figure(1, len(named), 3.2, 3.2, sharex=True, sharey=True)
    for ax, (name, counts) in zip(axes[0], named.items(), strict=True):
        histogram = torch.bincount(counts.cpu())
        ax.bar(range(len(histogram)), (100 * histogram / counts.numel()).tolist(), color="tab:red")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(title=name, xlabel="times used")
    axes[0, 0].set_ylabel("% of samples")
    return figure


def coverage(selector: DynamicSelector, epochs: Sequence[int] | None = None) -> Figure:
    """Which share of a factor's samples each epoch's subset holds, for the rare and for the common factors.

    Args:
        selector: made from features; it is left at the epoch where it was.
        epochs: which ones to show; default all that were planned. Every one costs a pass over the subset's features.

    Raises:
        ValueError: a selector made from scores knows no factors.
    """
    if selector.factors is None:
        raise ValueError("coverage: selector must be made from features to know its factors")
    state = selector.state_dict()
    shown = list(range(selector.epochs) if epochs is None else epochs)
    held = []
    for epoch in shown:
        selector.select(epoch)
        held.append(selector.stats()["coverage"])
    selector.load_state_dict(state)
    figure, axes = _figure(1, 1, 6, 4)
    for kind, colour in (("common", "tab:blue"), ("rare", "tab:red")):
        share = [100 * one[kind] for one in held]
        axes[0, 0].plot([e + 1 for e in shown], share, color=colour, label=f"the {kind} quarter", marker=".")
    axes[0, 0].set(xlabel="epoch", ylabel="% of a factor's samples in the subset", ylim=(0, None))
    axes[0, 0].legend(title="factors")
    return figure


def plane(selector: DynamicSelector, epochs: Sequence[int] = (0,)) -> Figure:
    """Samples by representativeness and diversity, those of an epoch's subset in colour.

    Args:
        selector: any `DynamicSelector`; it is left at the epoch where it was.
        epochs: one picture each.

    Example:
        >>> selector = DynamicSelector.from_scores(torch.rand(50), torch.rand(50), 0.3, 4, key=0)
        >>> len(plane(selector, (0, 2)).axes)
        2
    """
    state = selector.state_dict()
    step = -(-selector.num_samples // _POINTS)
    figure, axes = _figure(1, len(epochs), 3.8, 3.8, sharex=True, sharey=True)
    for ax, epoch in zip(axes[0], epochs, strict=True):
        taken = torch.zeros(selector.num_samples, dtype=torch.bool, device="cpu")
        taken[selector.select(epoch).cpu()] = True
        for among, colour, label in ((~taken, "lightgrey", "left out"), (taken, "tab:red", "in the subset")):
            rows = torch.nonzero(among).flatten()[::step]
            x, y = (table.cpu()[rows].tolist() for table in (selector.representativeness, selector.diversity))
            ax.scatter(x, y, s=4, color=colour, label=label, linewidths=0, rasterized=True)
        ax.set(title=f"epoch {epoch + 1}", xlabel="representativeness")
    axes[0, 0].set_ylabel("diversity")
    axes[0, -1].legend(markerscale=3)
    selector.load_state_dict(state)
    return figure


def factors(
    selector: DynamicSelector,
    features: Any,
    show: Callable[[Axes, int], Any],
    *,
    which: Sequence[int] | None = None,
    top: int = 8,
) -> Figure:
    """A card for each factor: the samples that activate it most.

    Args:
        selector: made from features.
        features: [N, d], those that it was made from.
        show: draws a sample: called with axes and the sample's index, for instance
            ``lambda ax, i: ax.imshow(images[i])``.
        which: factors to show; default the four commonest and the four rarest that at least ``top`` samples have.
        top: samples on a card.

    Raises:
        ValueError: a selector made from scores knows no factors.
    """
    if selector.factors is None or selector.sae is None:
        raise ValueError("factors: selector must be made from features to know its factors")
    counts = selector.factors.counts.cpu()
    if which is None:
        by_count = counts.argsort(descending=True, stable=True)
        enough = by_count[counts[by_count] >= top]
        which = torch.cat([enough[:4], enough[4:][-4:]]).tolist()
    best = top_samples(selector, features, which, top)
    figure, axes = _figure(len(which), top, 1.0, 1.15)
    for row, factor, samples in zip(axes, which, best, strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, sample in zip(row, samples, strict=False):
            show(ax, sample)
        row[0].set_title(
            f"factor {factor}: {100 * int(counts[factor]) / selector.num_samples:.2g} %", loc="left", fontsize=8
        )
    return figure


@torch.no_grad()
def top_samples(selector: DynamicSelector, features: Any, which: Sequence[int], top: int) -> list[list[int]]:
    """For each factor the samples of highest activation, the highest first; fewer where fewer have it."""
    from pysel.sae.rows import Rows

    assert selector.sae is not None
    wanted = torch.tensor(list(which), dtype=torch.int64, device="cpu")
    values = torch.empty(len(wanted), 0, dtype=torch.float32, device="cpu")
    samples = torch.empty(len(wanted), 0, dtype=torch.int64, device="cpu")
    first = 0
    for batch in Rows(features, "factors", "features").batches(8192):
        activation, unit = (t.cpu() for t in selector.sae.encode(batch.to(selector.sae.bias.device)))
        here = torch.stack([activation.masked_fill(unit != j, 0).amax(1) for j in wanted])
        numbers = torch.arange(first, first + len(batch), device="cpu").expand_as(here)
        values, place = torch.cat([values, here], 1).topk(min(top, values.size(1) + len(batch)), dim=1)
        samples = torch.cat([samples, numbers], 1).gather(1, place)
        first += len(batch)
    return [s[v > 0].tolist() for v, s in zip(values, samples, strict=True)]
