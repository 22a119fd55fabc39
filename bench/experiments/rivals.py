"""What `make leaderboard` compares: every method of the package with the defaults of its paper, and simple ones.

None of it has been tuned here. Scores that come from training are charged with that training: networks after a tenth of
it (EL2N and what is like it), or one whole training on all of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.experiments.feeds import Diverse, Streamed, Typical, Weighed, looked_at, losses_of
from bench.experiments.methods import dynamic, dynamic_random, full, static_random
from bench.experiments.networks import Residual, make_network
from bench.experiments.protocol import Feed, Method
from bench.experiments.scenarios import TRAIN
from bench.experiments.setting import Data, Setting
from pysel import permutation
from pysel.selection import (
    ASSS,
    AUM,
    RCAP,
    TDDS,
    UCB,
    BatchLossScores,
    DynamicRandom,
    DynamicUncertainty,
    EpsilonGreedy,
    FacilityLocation,
    Familiarity,
    FamiliaritySelector,
    FixedSelector,
    Forgetting,
    GraphCut,
    Herding,
    InfoBatch,
    KCentre,
    KMeans,
    Moderate,
    NearestNeighbourThinning,
    OrderDP,
    ScoreSelector,
    Selector,
    SemanticDiversity,
    SeTa,
    StaticRandom,
    awareness,
    class_centres,
    el2n,
    grand,
    hidden_states,
    margin,
    mine,
)

KINDS = {
    "reference": "all of the data for all epochs: more steps than all others",
    "baseline": "looks at nothing",
    "scores": "one subset, by what training has shown of each sample",
    "geometry": "one subset, by where samples lie",
    "learned": "what to train on is learned together with the task",
    "dynamic": "a subset for each epoch",
    "batch": "chooses or weighs within batches of all of the data",
    "stream": "decides as samples arrive",
}
Maker = Callable[[Setting], Selector]
EARLY, NETWORKS = 0.1, 5  # how much of training, and how many networks, EL2N and its like take


# --- scores from training ---


def fit(
    data: Data,
    seed: int,
    epochs: int,
    recorders: tuple[Any, ...] = (),
    *,
    network: nn.Module | None = None,
    rows: Tensor | None = None,
) -> nn.Module:
    """A network trained on all of the data, or on those rows; recorders hear of each step."""
    task, settings = data.task, data.settings
    network = make_network(task, settings.hidden, seed) if network is None else network
    rows = torch.arange(len(task.train_y)) if rows is None else rows
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(settings.batch_size):
            optimiser.zero_grad()
            logits = network(task.train_x[batch])
            losses = F.cross_entropy(logits, task.train_y[batch], reduction="none")
            losses.mean().backward()
            optimiser.step()
            for recorder in recorders:
                recorder.update(batch, losses=losses.detach().cpu(), logits=logits.detach().cpu())
    return network


def early(data: Data) -> list[tuple[Tensor, Tensor]]:
    """Logits [N, C] and hidden units [N, h] of all samples, by networks early in training."""

    def make() -> list[tuple[Tensor, Tensor]]:
        seeds = [1000 * (data.seed + 1) + number for number in range(NETWORKS)]
        epochs = max(1, round(EARLY * data.settings.epochs))
        return [looked_at(fit(data, seed, epochs), data.task.train_x) for seed in seeds]

    return data.shared.get("early", make)


def by_early(score: Callable[[Tensor, Tensor, Tensor], Tensor], *, largest: bool = True) -> Maker:
    """The samples of the largest, or smallest, of a score of (logits, labels, hidden units), its mean over networks."""

    def make(setting: Setting) -> Selector:
        scores = [score(logits, setting.labels, hidden) for logits, hidden in early(setting.data)]
        return ScoreSelector(torch.stack(scores).mean(0), setting.settings.keep_ratio, largest=largest)

    return make


def by_dynamics(recorder: str) -> Maker:
    """The samples of the largest scores from one training on all of the data."""

    def record(data: Data) -> dict[str, Tensor]:
        labels, classes = data.task.train_y.cpu(), data.task.num_classes
        window = min(10, max(3, data.settings.epochs // 2))
        recorders = (
            Forgetting(labels, classes),
            AUM(labels, classes),
            DynamicUncertainty(labels, classes, window=window),
            TDDS(labels, classes, window=window),
        )
        fit(data, 1000 * (data.seed + 1), data.settings.epochs, recorders)
        return {type(told).__name__: told.scores() for told in recorders}

    def make(setting: Setting) -> Selector:
        scores = setting.data.shared.get("dynamics", lambda: record(setting.data))[recorder]
        return ScoreSelector(scores, setting.settings.keep_ratio)

    return make


def familiarity(setting: Setting) -> Selector:
    """Least familiar to a network of six blocks, which has been trained on a half of the data: so that is known."""

    def make() -> tuple[Tensor, Familiarity]:
        data, width = setting.data, setting.settings.hidden
        task, seed = data.task, 1000 * (data.seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = nn.Sequential(nn.Flatten(), nn.Linear(task.train_x[0].numel(), width))
            blocks = [first, *(Residual(width) for _ in range(6))]
            network = nn.Sequential(*blocks, nn.Linear(width, task.num_classes)).to(task.train_x.device)
        seen = torch.zeros(len(task.train_y), dtype=torch.bool)
        seen[permutation(len(seen), key=data.key, stop=len(seen) // 2)] = True
        fit(data, seed, data.settings.epochs // 2, network=network, rows=torch.nonzero(seen).flatten())
        aware = awareness(hidden_states(network, task.train_x, [str(block) for block in range(1, 7)], batch_size=4096))
        return aware.cpu(), Familiarity().fit(aware.cpu(), seen)

    aware, classifier = setting.data.shared.get("familiarity", make)
    return FamiliaritySelector(aware, setting.settings.keep_ratio, classifier)


# --- makers ---


def stratified_random(setting: Setting) -> Selector:
    """A random subset to which each class gives its share."""
    return StaticRandom(setting.num_samples, setting.settings.keep_ratio, labels=setting.labels, key=setting.key)


def fresh_random(setting: Setting) -> Selector:
    """RS2 with replacement: each epoch draws anew."""
    return DynamicRandom(setting.num_samples, setting.settings.keep_ratio, replacement=True, key=setting.key)


def by_features(make: Callable[..., Selector]) -> Maker:
    """A method that is given the features and the share to keep."""
    return lambda setting: make(setting.data.features, setting.settings.keep_ratio)


def by_class(make: Callable[..., Selector], most: int = 2500) -> Maker:
    """The same for each class, and for random parts of one that has more than ``most`` samples: costs are quadratic."""

    def maker(setting: Setting) -> Selector:
        labels, n = setting.labels, setting.num_samples
        part = permutation(n, key=setting.key) % -(-int(torch.bincount(labels).max()) // most)
        return make(setting.data.features, setting.settings.keep_ratio, labels=labels * n + part)

    return maker


def semantic(setting: Setting) -> Selector:
    """Likeness to its class plus distance from its neighbours, both in the features."""
    return SemanticDiversity(setting.data.features, setting.labels, setting.settings.keep_ratio)


def mined(setting: Setting) -> Selector:
    """Of each class the share that is most like its centre, those alone that are more like it than another's."""
    labels, share = setting.labels, setting.settings.keep_ratio
    of = class_centres(setting.data.features, labels)
    sizes = torch.bincount(labels)[of.labels]
    found = mine(setting.data.features, of.centres, (share * sizes.double()).ceil().long())
    own = of.labels[found.labels] == labels[found.indices]
    return FixedSelector(found.indices[own], setting.num_samples)


def by_losses(make: Callable[..., Selector]) -> Maker:
    """A method that goes by the losses of training and keeps a share in each epoch."""
    return lambda setting: make(setting.num_samples, setting.settings.keep_ratio, key=setting.key)


def rcap(setting: Setting) -> Selector:
    """It is given labels for the number of samples."""
    return RCAP(setting.labels, setting.settings.keep_ratio, key=setting.key)


def infobatch(setting: Setting) -> Selector:
    """The share is set, its own part in full at the end counts among the steps."""
    epochs = setting.epochs(refine=1 - 0.875)
    return InfoBatch(setting.num_samples, epochs, keep_ratio=setting.settings.keep_ratio, key=setting.key)


def seta(setting: Setting) -> Selector:
    """Its random part is the share to keep."""
    share = setting.settings.keep_ratio
    return SeTa(setting.num_samples, setting.epochs(), prune_ratio=round(1 - share, 10), key=setting.key)


def kmeans(setting: Setting) -> Selector:
    """Nearest to as many centroids as there are classes."""
    clusters = setting.task.num_classes
    return KMeans(setting.data.features, setting.settings.keep_ratio, clusters, key=setting.key)


def asss(setting: Setting) -> Selector:
    """The game on the standard terms: it finds out itself whether leaving samples out helps."""
    task, settings = setting.task, setting.settings
    network = partial(make_network, task, settings.hidden, setting.seed)
    fitted = ASSS(settings.keep_ratio, epochs=settings.epochs, key=setting.key).fit(
        task.train_x, task.train_y, network, labels=task.train_y
    )
    return FixedSelector(fitted.select().cpu(), setting.num_samples)


def random_stream(setting: Setting) -> Feed:
    """Any samples of the stream, as many as PEAKS takes and at its pace."""
    generator = torch.Generator().manual_seed(setting.order_seed)
    return Streamed(setting, lambda logits, _: torch.rand(len(logits), generator=generator))


def el2n_stream(setting: Setting) -> Feed:
    """Those of the largest errors, as many as PEAKS takes and at its pace."""
    return Streamed(setting, el2n)


class ByBatchLoss(Feed):
    """InfoBatch by scores that come from the losses of whole batches, for tasks that have no other."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, infobatch(setting))
        self._scores = BatchLossScores(setting.num_samples)

    def update(self, batch: Tensor, losses: Tensor, logits: Tensor) -> None:
        self.selector.update(batch, losses=self._scores.update(batch, losses.mean()))


METHODS: dict[str, Method] = {
    "full data": Method("reference", full),
    "full data, fewer epochs": Method("baseline", full),
    "static random": Method("baseline", static_random),
    "stratified random": Method("baseline", stratified_random),
    "RS2": Method("baseline", dynamic_random, "2305.18424"),
    "RS2, with replacement": Method("baseline", fresh_random, "2305.18424"),
    "EL2N": Method("scores", by_early(lambda logits, labels, _: el2n(logits, labels)), "2107.07075"),
    "GraNd, last layer": Method("scores", by_early(grand), "2107.07075"),
    "margin": Method(
        "scores", by_early(lambda logits, _labels, _: margin(logits), largest=False), "Scheffer et al., 2001"
    ),
    "small loss": Method(
        "scores", by_early(lambda logits, labels, _: losses_of(logits, labels), largest=False), "1804.06872"
    ),
    "forgetting": Method("scores", by_dynamics("Forgetting"), "1812.05159"),
    "AUM": Method("scores", by_dynamics("AUM"), "2001.10528"),
    "Dyn-Unc": Method("scores", by_dynamics("DynamicUncertainty"), "2306.05175"),
    "TDDS": Method("scores", by_dynamics("TDDS"), "2311.13613"),
    "familiarity": Method("scores", familiarity, "2509.07311"),
    "k-means": Method("geometry", kmeans),
    "nearest-neighbour thinning": Method("geometry", by_features(NearestNeighbourThinning)),
    "Moderate": Method("geometry", by_class(Moderate, most=TRAIN), "Xia et al., ICLR 2023"),
    "k-centre": Method("geometry", by_class(KCentre), "1708.00489"),
    "herding": Method("geometry", by_class(Herding), "Welling, ICML 2009"),
    "facility location": Method("geometry", by_class(FacilityLocation), "1906.01827"),
    "graph cut": Method("geometry", by_class(GraphCut), "2006.15412"),
    "semantic diversity": Method("geometry", semantic, "2410.11215"),
    "mining": Method("geometry", mined, "2005.08551"),
    "ASSS": Method("learned", asss, "2601.02081"),
    "DivBS": Method("batch", Diverse, "2406.04872"),
    "OCS": Method("stream", Typical, "2106.01085"),
    "stream, random": Method("stream", random_stream),
    "stream, EL2N": Method("stream", el2n_stream, "2107.07075"),
    "PEAKS": Method("stream", Streamed, "2504.05250"),
    "MW-Net": Method("batch", Weighed, "1902.07379"),
    "CMW-Net": Method("batch", partial(Weighed, by_family=True), "2202.05613"),
    "InfoBatch": Method("dynamic", infobatch, "2303.04947"),
    "InfoBatch, by batch losses": Method("dynamic", ByBatchLoss, "2604.04681"),
    "SeTa": Method("dynamic", seta, "2503.13385"),
    "UCB": Method("dynamic", by_losses(UCB), "2111.12621"),
    "epsilon-greedy": Method("dynamic", by_losses(EpsilonGreedy), "2111.12621"),
    "OrderDP": Method("dynamic", by_losses(OrderDP), "2606.08574"),
    "RCAP": Method("dynamic", rcap, "2606.11761"),
    "DynamicSelector, as published": Method("dynamic", dynamic(balance_losses=False), "2603.04981"),
    "DynamicSelector": Method("dynamic", dynamic(), "2603.04981"),
}
