"""How much of the data `ASSS` draws its subset from: tried out on samples that are held back.

Two networks are trained on a subset from each of several pools, a short time: one on samples of a random half of the
data, judged on the other half, and one the other way round, so that every sample judges. The labels
there may be as wrong as the others. So it is judged by what wrong ones cannot change the order of: with labels
drawn again in a share e of the samples, accuracies become (1 - e) times what they were, plus the same number for all
networks, and squared correlations with a real target (1 - e)^2 times. A mean loss has no such property: it favours
networks that expect to be wrong, those that are trained on wrong labels. Correlations do not see by how much forecasts
are off on average, as those made of samples that fit best are, which may well have another mean. Wrong labels leave the
mean where it was, and so the square of that offset, over the target's variance, is taken off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pysel import ops
from pysel.random import fold_in
from pysel.selection.learned.batches import Batch
from pysel.selection.learned.lookahead import Loss
from pysel.selection.learned.replicas import Replicas
from pysel.selection.subset import Strata, subset_size

POOLS = (1.0, 0.8, 0.6)
ERRORS = 2.0  # standard errors that a pool must be better by than a larger one, for chance not to be taken for gain


@dataclass(frozen=True)
class Tried:
    """What came of a pool."""

    pool: float  # its share of the data
    credit: float  # see `credits`
    gain: float  # of credit, over a random subset of all of the data
    error: float  # standard error of the gain


def credits(outputs: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """What each sample adds to a network's credit, their mean: accuracy, R^2 of a forecast that is scaled as suits it
    best but not moved, or else less loss.

    Args:
        outputs: [M, C, ...] with integers ``y`` [M, ...] are logits of classes, and anything with as many numbers as
            ``y`` is a forecast of it.
        y: [M, ...].
        loss: where the outputs are neither.

    Returns:
        float64 [M].

    Example:
        >>> credits(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]), None)
        tensor([1., 0.], dtype=torch.float64)
    """
    if not y.is_floating_point() and outputs.dim() > 1 and outputs.shape[2:] == y.shape[1:]:
        return (outputs.argmax(1) == y).double().reshape(len(y), -1).mean(1)
    if outputs.numel() == y.numel():
        forecast, target = (part.double().reshape(len(y), -1) for part in (outputs, y))
        spreads = []
        for columns in (forecast, target):
            spread = columns.std(0, correction=0)
            spreads.append(torch.where(spread > 0, spread, torch.inf))
        product = (forecast - forecast.mean(0)) / spreads[0] * (target - target.mean(0)) / spreads[1]
        r = product.mean(0)
        ahead = (forecast - target) / spreads[1]
        offset = ahead.mean(0)
        # r |r| and offset^2, to first order in each sample
        return (r.abs() * (2 * product - r) - offset * (2 * ahead - offset)).mean(1)
    return -loss(outputs, y).double()


class Trial:
    """A network that trains on some samples and is judged on others.

    Args:
        network: is trained in place.
        optimiser: of its parameters.
        loss: one number a sample.
        rows: bool [N], samples that it trains on.
        held_back: bool [N], samples that it is judged on.
        batch_size: samples a step.
        steps: after which the learning rate is zero.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        loss: Loss,
        rows: Tensor,
        held_back: Tensor,
        batch_size: int,
        steps: int,
    ) -> None:
        self.network, self.loss, self.rows, self.held_back = network.train(), loss, rows, held_back
        self._batch_size, self._optimiser = batch_size, optimiser
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.0, 1 - step / steps))
        self._waiting: list[tuple[Tensor, Tensor]] = []  # x and y of samples that are too few for a step
        self._judged: list[tuple[Tensor, Tensor]] = []  # outputs and targets

    def see(self, batch: Batch) -> None:
        """Take from a batch what the network trains on, and train as soon as that is enough."""
        own = batch.at(self.rows[batch.indices])
        self._waiting.append((own.x, own.y))
        if sum(len(x) for x, _ in self._waiting) >= self._batch_size:
            self.step()

    def step(self) -> None:
        """Train on what waits, unless that is a single sample: layers that normalise by the batch need two."""
        waiting, self._waiting = self._waiting, []
        if sum(len(x) for x, _ in waiting) > 1:
            x, y = (torch.cat(parts) for parts in zip(*waiting, strict=True))
            self._optimiser.zero_grad()
            self.loss(self.network(x), y).mean().backward()
            self._optimiser.step()
            self._schedule.step()

    def judge(self, batch: Batch) -> None:
        """Note what the network makes of a batch's samples that it is judged on."""
        own = batch.at(self.held_back[batch.indices])
        if own.rows:
            self._judged.append((self.network(own.x), own.y))

    def credits(self) -> Tensor:
        """Of the samples that were judged."""
        outputs, y = (torch.cat(parts) for parts in zip(*self._judged, strict=True))
        return credits(outputs, y, self.loss)


def part_of_pool(
    logits: Tensor, pool: Tensor, keep_ratio: float, groups: Tensor | None, chance: Tensor, *, key: Tensor
) -> Tensor:
    """The subset: a random part of a pool, with the best others of a stratum that has too few there.

    Args:
        logits: [N].
        pool: int64, samples in it.
        keep_ratio: of the subset.
        groups: int32 [N], strata that keep their shares.
        chance: [N] in (0, 1), by which samples of the pool are taken.
        key: for equal logits.

    Returns:
        int64 indices, ascending.
    """
    place = torch.sigmoid(logits.double()) - 1  # not above 0
    place[pool] = chance[pool]
    strata = Strata(len(place), subset_size(keep_ratio, len(place)), groups, device=place.device)
    return strata.best(place, key=key)


def try_pools(
    logits: Tensor,
    keep_ratio: float,
    groups: Tensor | None,
    network: nn.Module,
    optimiser: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    loss: Loss,
    epoch_of: Callable[[int], Iterable[Batch]],
    everything: Callable[[], Iterable[Batch]],
    *,
    epochs: int,
    batch_size: int,
    replicas: Replicas,
    key: Tensor,
) -> list[Tried]:
    """Train and judge two networks for each of `POOLS` that holds a subset.

    Args:
        logits: [N], by which samples enter a pool.
        keep_ratio: of the subset.
        groups: int32 [N], its strata.
        network: is copied, not trained.
        optimiser: makes an optimiser of parameters.
        loss: one number a sample.
        epoch_of: all samples, in the batches of an epoch; all networks train in the same pass.
        everything: all samples once more, to be judged.
        epochs: for which a network sees its subset.
        batch_size: samples a step.
        replicas: ranks that must come to the same numbers.
        key: of the halves, and the random parts.

    Returns:
        what came of each, that of all of the data first; nothing where there is nothing to choose.
    """
    n, least = logits.numel(), float(keep_ratio)
    shares = [share for share in POOLS if share > least or share == 1.0]
    if POOLS[-1] < least < 1:
        shares.append(least)
    if len(shares) == 1 or n == 1:
        return []
    second = ops.permutation(n, key=fold_in(key, 0)).to(logits.device) < n // 2
    chance = ops.gumbel_sigmoid(torch.zeros(n, dtype=torch.float64, device=logits.device), key=fold_in(key, 1))
    trials = []
    for share in shares:
        for held_back in (second, ~second):
            half = torch.nonzero(~held_back).flatten()
            own = None if groups is None else groups[half]
            pool = ops.select(logits[half], subset_size(share, len(half)), key=fold_in(key, 2))
            part = part_of_pool(logits[half], pool, keep_ratio, own, chance[half], key=fold_in(key, 2))
            rows = torch.zeros_like(held_back)
            rows[half[part]] = True
            copied = copy.deepcopy(network)
            steps = epochs * -(-len(part) // batch_size)
            trials.append(Trial(copied, optimiser(copied.parameters()), loss, rows, held_back, batch_size, steps))
    with torch.enable_grad():
        for epoch in range(epochs):
            for batch in epoch_of(epoch):
                for trial in trials:
                    trial.see(batch)
            for trial in trials:
                trial.step()
    with torch.no_grad():
        for trial in trials:
            trial.network.eval()
        for batch in everything():
            for trial in trials:
                trial.judge(batch)
        each = [trial.credits() for trial in trials]
    by_pool = [torch.cat(pair) for pair in zip(each[::2], each[1::2], strict=True)]
    found = []
    for share, each_credit in zip(shares, by_pool, strict=True):
        ahead = each_credit - by_pool[0]
        numbers = replicas.mean(torch.stack([each_credit.mean(), ahead.mean(), ahead.std() / n**0.5]))
        found.append(Tried(share, *numbers.tolist()))
    return found


def best_pool(tried: list[Tried]) -> float:
    """The smallest pool that is demonstrably better than the larger one that would otherwise be taken.

    Example:
        >>> best_pool([Tried(1.0, 0.70, 0.0, 0.0), Tried(0.8, 0.75, 0.05, 0.01), Tried(0.6, 0.76, 0.06, 0.01)])
        0.8
    """
    taken = Tried(1.0, 0.0, 0.0, 0.0)
    for one in tried:
        if one.gain - taken.gain > ERRORS * one.error:
            taken = one
    return taken.pool
