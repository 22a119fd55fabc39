"""Pictures of a selection: how evenly samples are used, which factors a subset covers, where it lies between common and
rare, and what a factor is about; and of a learned one, how it was learned and which samples go.

Each function returns a matplotlib figure, which shows itself in a notebook and has ``savefig``; matplotlib comes with
``pip install pysel[plot]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pysel import _inputs
from pysel.selection import ASSS, DynamicSelector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "bottleneck",
    "coverage",
    "dropped",
    "factors",
    "history",
    "plane",
    "probabilities",
    "trade_off",
    "usage",
]

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
        ValueError: a selector made from scores knows no factors; no factor has ``top`` samples.
    """
    if selector.factors is None or selector.sae is None:
        raise ValueError("factors: selector must be made from features to know its factors")
    counts = selector.factors.counts.cpu()
    if which is None:
        by_count = counts.argsort(descending=True, stable=True)
        enough = by_count[counts[by_count] >= top]
        if len(enough) == 0:
            most = int(counts.max())
            raise ValueError(f"factors: top must be at most {most}, the samples of the commonest factor, got {top}")
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


def probabilities(selector: ASSS, bins: int = 50) -> Figure:
    """How the probabilities of samples are distributed, in the subset and outside of it.

    Args:
        selector: fitted.
        bins: of the histogram, over [0, 1].

    Example:
        >>> selector = ASSS(0.5, epochs=3, key=0).fit(torch.rand(9, 2), torch.arange(9) % 2, lambda: nn.Linear(2, 2))
        >>> probabilities(selector).axes[0].get_xlabel()
        'probability'
    """
    table = selector.importances()
    figure, axes = _figure(1, 1, 5, 3.5)
    groups = [table.probability[among].tolist() for among in (~table.selected, table.selected)]
    labels, colours = ["left out", "in the subset"], ["lightgrey", "tab:red"]
    axes[0, 0].hist(groups, bins=bins, range=(0, 1), stacked=True, label=labels, color=colours)
    axes[0, 0].axvline(float(selector.settings.target), color="black", linestyle=":", label="target")
    axes[0, 0].set(xlabel="probability", ylabel="samples")
    axes[0, 0].legend()
    return figure


def history(selector: ASSS) -> Figure:
    """Epoch by epoch: task loss, mean probability, information in bits, and how much of the subset is new."""
    entries = selector.history
    if not entries:
        raise ValueError("history: selector must have been fitted, got one without any epoch")
    figure, axes = _figure(2, 2, 4.5, 2.6, sharex=True)
    panels = (
        ("task_loss", "task loss"),
        ("mean_probability", "mean probability"),
        ("information", "information, bits"),
        ("turnover", "% of the subset new"),
    )
    for ax, (name, label) in zip(axes.flat, panels, strict=True):
        points = [(e + 1, entry[name]) for e, entry in enumerate(entries) if name in entry]
        scale = 100 if name == "turnover" else 1
        ax.plot([e for e, _ in points], [scale * value for _, value in points], color="tab:red", marker=".")
        ax.set_ylabel(label)
    axes[0, 1].axhline(float(selector.settings.target), color="black", linestyle=":")
    for ax in axes[1]:
        ax.set_xlabel("epoch")
    return figure


def trade_off(selectors: Mapping[float, ASSS]) -> Figure:
    """What fidelity costs sparsity: task loss and mean probability at the end, over the sparsity weight.

    Args:
        selectors: fitted, by their ``sparsity_weight`` or whatever else was varied.
    """
    weights = sorted(selectors)
    last = [selectors[weight].history[-1] for weight in weights]
    figure, axes = _figure(1, 2, 4, 3.5, sharex=True)
    for ax, name, label in zip(
        axes[0], ("task_loss", "mean_probability"), ("task loss", "mean probability"), strict=True
    ):
        ax.plot(weights, [entry[name] for entry in last], color="tab:red", marker="o")
        ax.set(xlabel="sparsity weight", ylabel=label)
        if weights[0] > 0 and weights[-1] > 10 * weights[0]:
            ax.set_xscale("log")
    return figure


def bottleneck(selectors: ASSS | Mapping[str, ASSS]) -> Figure:
    """The way of the training through the information plane: task loss over what a gate tells of its sample, in bits.

    Each epoch is a point, and the last one has the mean probability beside it. The information is
    I(selection; sample), see `pysel.selection.learned.information`.

    Args:
        selectors: fitted, one or several by name.
    """
    named = selectors if isinstance(selectors, Mapping) else {"": selectors}
    figure, axes = _figure(1, 1, 5.5, 4)
    for name, selector in named.items():
        entries = selector.history
        bits, losses = ([entry[key] for entry in entries] for key in ("information", "task_loss"))
        axes[0, 0].plot(bits, losses, marker=".", label=name)
        axes[0, 0].annotate(f"p = {entries[-1]['mean_probability']:.2f}", (bits[-1], losses[-1]))
    axes[0, 0].set(xlabel="I(selection; sample), bits", ylabel="task loss", xlim=(0, None))
    if isinstance(selectors, Mapping):
        axes[0, 0].legend()
    return figure


def dropped(selector: ASSS, quantities: Mapping[str, Any]) -> Figure:
    """Which samples go: the share left out, by something that is known of them.

    Args:
        selector: fitted.
        quantities: by name. Booleans [N], for instance which labels were made wrong: the share of both kinds. Numbers
            [N], for instance the distance to a decision boundary: that of each tenth.

    Raises:
        TypeError, ValueError: not one boolean or number a sample.
    """
    out = ~selector.importances().selected.cpu()
    n = out.numel()
    figure, axes = _figure(1, len(quantities), 3.8, 3.4, sharey=True)
    for ax, (name, quantity) in zip(axes[0], quantities.items(), strict=True):
        values = _inputs.tensor("dropped", f"quantities[{name!r}]", quantity).cpu()
        if values.dtype == torch.bool:
            _inputs.integers("dropped", f"quantities[{name!r}]", values, n)
            parts, ticks = [~values, values], ["no", "yes"]
        else:
            values = _inputs.vector("dropped", f"quantities[{name!r}]", values, n)
            order = values.argsort(stable=True)
            parts = [part for part in order.tensor_split(10) if part.numel()]
            ticks = [f"{float(values[part].median()):.2g}" for part in parts]
        ax.bar(range(len(parts)), [100 * float(out[part].double().mean()) for part in parts], color="tab:red")
        ax.axhline(100 * float(out.double().mean()), color="black", linestyle=":")
        ax.set_xticks(range(len(parts)), ticks, rotation=45 if len(ticks) > 2 else 0)
        ax.set_xlabel(name)
    axes[0, 0].set_ylabel("% left out")
    return figure
