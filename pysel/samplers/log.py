"""What selection does and costs, epoch by epoch, in TensorBoard or W&B."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

from pysel import _checks
from pysel.samplers.batch import BatchSampler
from pysel.samplers.ranked import RankedSampler
from pysel.samplers.selection import SelectionSampler


class SelectionLog:
    """Writes a sampler's figures at the end of each epoch, and beside them what share of the time selection took.

    Training is what is left of the time since the epoch before ended (before the first: since this was made) without
    the seconds that the sampler spent on picking samples: loading data, waiting for other ranks and whatever else the
    loop does are in it. No rank waits for another here, so one of them may write alone.

    Neither TensorBoard nor W&B is imported: what they are recognised by is ``add_scalar`` and ``log``.

    Args:
        sampler: a `pysel.WeightedSampler`, a `pysel.SelectionSampler`, or a `pysel.BatchSampler` of one.
        writer: a ``torch.utils.tensorboard.SummaryWriter`` or anything with ``add_scalar(tag, value, step)``; a run
            that ``wandb.init`` gave or anything with ``log(dictionary, step=)``; None for ranks that do not write.
        selector: write the selector's own figures, too, see `pysel.SelectionSampler.stats` for what they may take.

    Raises:
        TypeError: ``sampler`` or ``writer`` is something else, or ``selector`` not a bool.

    Example:
        >>> import pysel
        >>> sampler = pysel.SelectionSampler(pysel.selection.DynamicRandom(10, keep_ratio=0.3, key=0), key=0)
        >>> log = SelectionLog(sampler, None)  # SummaryWriter("runs/first"), wandb.init(project="first")
        >>> for epoch in range(2):
        ...     sampler.set_epoch(epoch)
        ...     samples = list(sampler)
        ...     figures = log.epoch_end(epoch)
        >>> figures["epoch"], figures["num_samples"], figures["realised_ratio"]
        (1, 3, 0.3)
        >>> 0 < figures["selection_share"] < 1
        True
    """

    def __init__(self, sampler: RankedSampler | BatchSampler, writer: Any, *, selector: bool = True) -> None:
        name = type(self).__name__
        if not isinstance(sampler, RankedSampler | BatchSampler):
            raise TypeError(
                f"{name}: sampler must be a WeightedSampler, a SelectionSampler or a BatchSampler, "
                f"got {type(sampler).__name__}"
            )
        logs = hasattr(writer, "log") and not isinstance(writer, logging.Logger)  # whose log takes a level and a text
        if not (writer is None or hasattr(writer, "add_scalar") or logs):
            raise TypeError(f"{name}: writer must have add_scalar or log, or be None, got {type(writer).__name__}")
        self._sampler = sampler.sampler if isinstance(sampler, BatchSampler) else sampler
        self._selector = _checks.flag(name, "selector", selector)
        self._writer = writer
        if hasattr(writer, "define_metric"):  # W&B then draws over epochs, whatever its own steps are
            writer.define_metric("selection/*", step_metric="selection/epoch")
        self._begin()

    def _begin(self) -> None:
        self._since, self._selected = perf_counter(), self._sampler._watch.total

    def epoch_end(self, epoch: int, *, step: int | None = None) -> dict[str, int | float]:
        """Write the figures of the epoch that has ended, as ``selection/...``.

        Args:
            epoch: its number, over which they are drawn.
            step: the writer's step to put them at; default in TensorBoard the epoch. W&B takes no step before the one
                it has come to, so that there they go by default to the one that is being written.

        Returns:
            the sampler's ``stats()`` with ``training_seconds`` and ``selection_share``, the part of these and the
            seconds of selection that went into selection.

        Raises:
            TypeError, ValueError: ``epoch`` or ``step`` is not an int, or negative; nothing was written.
        """
        name = f"{type(self).__name__}.epoch_end"
        epoch = _checks.in_range(name, "epoch", epoch, 0)
        step = None if step is None else _checks.in_range(name, "step", step, 0)
        passed, selected = perf_counter() - self._since, self._sampler._watch.total - self._selected
        sampler = self._sampler
        stats = sampler.stats(selector=self._selector) if isinstance(sampler, SelectionSampler) else sampler.stats()
        figures = {
            **stats,
            "epoch": epoch,
            "training_seconds": passed - selected,
            "selection_share": selected / passed if passed else 0.0,
        }
        self._write({f"selection/{name}": value for name, value in figures.items()}, epoch, step)
        self._begin()
        return figures

    def _write(self, figures: dict[str, int | float], epoch: int, step: int | None) -> None:
        if hasattr(self._writer, "add_scalar"):
            for tag, value in figures.items():
                self._writer.add_scalar(tag, value, epoch if step is None else step)
        elif self._writer is not None:
            self._writer.log(figures, step=step)
