"""What trains by more than subsets: methods that choose within batches, weigh them, or decide as samples come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.experiments.protocol import Batch, Feed
from bench.experiments.setting import Setting
from pysel import fold_in
from pysel.selection import Full, MetaWeighter, class_families, diverse_batch, low_loss
from pysel.selection.stream import OnlineCoreset, Peaks

ARRIVING = 64  # samples of a stream at a time


@torch.no_grad()
def looked_at(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and hidden units, on the CPU: what scores and selectors are given."""
    training = network.training
    network.eval()
    hidden = torch.cat([network[:-1](part) for part in x.split(4096)])
    logits = network[-1](hidden)
    network.train(training)
    return logits.cpu(), hidden.cpu()


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [N]."""
    return F.cross_entropy(logits, labels, reduction="none")


class Weighed(Feed):
    """Batches of all of the data, weighed by a function of the loss that is learned as training goes on.

    Its meta set are the samples of the smallest losses of each class, a batch of them, found again in each epoch.
    """

    def __init__(self, setting: Setting, *, by_family: bool = False) -> None:
        super().__init__(setting, Full(setting.num_samples))
        sizes = torch.bincount(setting.labels, minlength=setting.task.num_classes)
        families = class_families(sizes.clamp_min(1)) if by_family else None
        self._weighter = MetaWeighter(families=families, normalise=by_family, key=setting.key)

    def batches(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[Batch]:
        task, settings = self.setting.task, self.setting.settings
        for subset in self.subsets():
            losses = losses_of(looked_at(network, task.train_x)[0], self.setting.labels)
            trusted = low_loss(losses, self.setting.labels, per_class=max(1, settings.batch_size // task.num_classes))
            meta = task.train_x[trusted], task.train_y[trusted]
            for batch in subset.split(settings.batch_size):
                x, y = task.train_x[batch], task.train_y[batch]
                self._weighter.meta_step(network, (x, y), meta, optimiser)
                with torch.no_grad():
                    losses = losses_of(network(x), y)
                yield batch, self._weighter.weigh(losses, y).cpu()


class Diverse(Feed):
    """Of a larger batch of all of the data those whose gradients are not alike; it pays for looking at all of them."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, Full(setting.num_samples))
        self._step = 0

    def batches(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[Batch]:
        task, settings = self.setting.task, self.setting.settings
        for subset in self.subsets():
            for batch in subset.split(round(settings.batch_size / settings.keep_ratio)):
                logits, hidden = looked_at(network, task.train_x[batch])
                errors = torch.softmax(logits, 1) - F.one_hot(self.setting.labels[batch], task.num_classes)
                size = min(settings.batch_size, len(batch))
                picked = batch[diverse_batch(errors, hidden, size, key=fold_in(self.setting.key, self._step))]
                self._step += 1
                yield picked, torch.ones(size)


class Gate(Peaks):
    """Takes from a stream as `Peaks` does, by another score of logits and labels."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor], num_classes: int, capacity: int, *, key: Tensor):
        super().__init__(num_classes, capacity, key=key)
        self._own = score

    def _score(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._own(logits, labels).double()


class Streamed(Feed):
    """What is taken from a stream, as many samples as the share kept, and trained on as it comes and again later.

    As in the paper of PEAKS, batches of 64 arrive until 8 samples are taken, to which older ones are added; at every
    hundredth step the window is emptied. It starts after a twentieth of the steps, which take any samples.
    """

    def __init__(self, setting: Setting, score: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__(setting, Full(setting.num_samples))
        places = setting.task.num_classes, setting.subset_size
        self._peaks = Gate(score, *places, key=setting.key) if score else Peaks(*places, key=setting.key)

    def batches(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[Batch]:
        size, peaks = self.setting.settings.batch_size, self._peaks
        arriving = self._arriving()
        for _ in range(max(1, self.setting.steps // 20)):
            batch = torch.cat([next(arriving) for _ in range(2)])[:size]
            yield batch, torch.ones(len(batch))
        for step in itertools.count():
            new = torch.empty(0, dtype=torch.int64)
            while len(peaks) < peaks.memory.places and len(new) < 8:
                new = torch.cat([new, self._taken(network, next(arriving))])
            if step % 100 == 0 or not len(new):
                peaks.refresh()
                joined = len(peaks)
            older = peaks.replay(min(max(0, size - len(new)), joined))
            batch = torch.cat([new, older])
            yield batch, torch.ones(len(batch))

    def _arriving(self) -> Iterator[Tensor]:
        for subset in self.subsets():
            yield from subset.split(ARRIVING)

    def _taken(self, network: nn.Module, batch: Tensor) -> Tensor:
        logits = looked_at(network, self.setting.task.train_x[batch])[0]
        return batch[self._peaks.offer(logits, self.setting.labels[batch], indices=batch)]


class Typical(Feed):
    """Of two batches that arrive, the half that OCS picks; there is one task, so that no memory takes part."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, Full(setting.num_samples))
        self._size = setting.settings.batch_size
        classes, hidden = setting.task.num_classes, setting.settings.hidden
        self._coreset = OnlineCoreset(classes, hidden, self._size, batch_size=self._size, key=setting.key)

    def batches(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[Batch]:
        task = self.setting.task
        for subset in self.subsets():
            for batch in subset.split(2 * self._size):
                logits, hidden = looked_at(network, task.train_x[batch])
                picked = batch[self._coreset.offer(logits, self.setting.labels[batch], features=hidden, indices=batch)]
                yield picked, torch.ones(len(picked))
