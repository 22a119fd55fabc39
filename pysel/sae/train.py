"""Training and judging a sparse autoencoder."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pysel import _checks, ops
from pysel.random import as_key, fold_in, split
from pysel.sae.model import TopKSAE, geometric_median, power_of_two
from pysel.sae.rows import Rows

__all__ = ["SAEReport", "evaluate_sae", "train_sae"]

_JUDGED = 16384  # rows that a report is made of, at most: explained variance is then known to a fraction of a percent
_STEPS = 320  # training steps by default: more explain a little more, and cost as much again
_POOR = 0.5  # explained variance below which most of what tells rows apart is not in the factors


@dataclass(frozen=True)
class SAEReport:
    """How well a sparse autoencoder describes a data set."""

    explained_variance: float  # 1 - fraction of variance unexplained
    l0: float  # mean number of active units in a row
    dead: int  # units that no row activates
    num_factors: int
    rows: int = 0  # on which all this was measured
    seconds: float = 0.0  # training time
    losses: list[float] = field(default_factory=list)  # mean of each epoch

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return 1.0 - self.explained_variance

    def __str__(self) -> str:
        return (
            f"explained variance {self.explained_variance:.1%}, L0 {self.l0:.1f}, "
            f"dead units {self.dead}/{self.num_factors}, on {self.rows:,} rows"
        )


@torch.no_grad()
def evaluate_sae(model: TopKSAE, features: Any, batch_size: int = 8192) -> SAEReport:
    """Explained variance, L0 and dead units of a model on features, in batches.

    Args:
        model: in whatever mode; it stays in it.
        features: [N, d], any source that `Rows` reads; batches are moved to the model's device.
        batch_size: rows at a time.

    Returns:
        `SAEReport` without training time and losses.

    Raises:
        TypeError, ValueError: ``features`` is no such source, is not finite, or not as wide as the model.

    Example:
        >>> import pysel
        >>> evaluate_sae(TopKSAE(4, 8, 2, key=pysel.key(0)), torch.eye(4)).num_factors
        8
    """
    batch_size = _checks.in_range("evaluate_sae", "batch_size", batch_size, 1)
    rows = features if isinstance(features, Rows) else Rows(features, "evaluate_sae", "features")
    if rows.shape[1] != model.in_features:
        raise ValueError(f"evaluate_sae: features must be [N, {model.in_features}], got {list(rows.shape)}")
    device = model.bias.device
    counts = torch.zeros(model.num_factors, dtype=torch.int64, device=device)
    total = torch.zeros(model.in_features, dtype=torch.float64, device=device)
    squares, unexplained = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in rows.batches(batch_size):
        batch = batch.to(device)
        values, indices = model.encode(batch)
        # About the bias, as the model sees it: less is lost to rounding where the mean is far from 0.
        centred = batch - model.bias
        residual = centred - ops.sparse_decode(values, indices, model.decoder)
        total += centred.sum(0)
        squares += torch.linalg.vector_norm(centred, dtype=torch.float64).square()
        unexplained += torch.linalg.vector_norm(residual, dtype=torch.float64).square()
        counts += model.counts(values, indices)
    n = rows.shape[0]
    variance = float(squares - total.square().sum() / n)
    rounding = torch.finfo(torch.float64).eps * float(squares)
    return SAEReport(
        explained_variance=1.0 - float(unexplained) / variance if variance > rounding else float(unexplained == 0),
        l0=int(counts.sum()) / n,
        dead=int((counts == 0).sum()),
        num_factors=model.num_factors,
        rows=n,
    )


def train_sae(
    features: Any,
    num_factors: int,
    k: int,
    *,
    activation: str = "relu",
    tied: bool = False,
    revive: str | None = "aux",
    max_rows: int | None = 32768,
    epochs: int | None = None,
    batch_size: int = 512,
    lr: float = 3e-3,
    aux_k: int | None = None,
    aux_weight: float = 1 / 32,
    dead_after: int | None = None,
    key: Tensor | int | None = None,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, float], None] | None = None,
) -> tuple[TopKSAE, SAEReport]:
    """Train a `TopKSAE` with Adam, the learning rate falling linearly to zero.

    It trains in float32, whatever the features' dtype, on at most ``max_rows`` of them, centred on their geometric
    median and divided by a power of two near their root mean square: features in other units give the same model in
    those units. The result depends on the features, the arguments and the key, and on nothing else on one device;
    devices differ in the last bits of matrix products.

    The defaults are by measurement on a table of flights and on pictures (bench/experiments/factors.py): a higher lr
    explains more and leaves more units dead, a lower one makes scores that depend less on which rows were seen.

    Args:
        features: [N, d] floating point, best with comparable scales (`pysel.selection.features.standardise`): a tensor,
            an array, a memmap, a column of a data set, or batches that can be iterated twice, see `Rows`. The rows
            trained on are held in memory, the others are read once, to see that they are finite.
        num_factors: number of units, H; at most the number of rows trained on.
        k: activations kept.
        activation, tied, revive, aux_k, aux_weight: see `TopKSAE`.
        max_rows: train on so many rows at most, a uniform sample without replacement; None for all.
        epochs: passes over the rows trained on; 0 gives the initial model, None as many as make 320 steps or more.
        batch_size: rows a step.
        lr: initial learning rate, for features of unit variance.
        dead_after: samples without activity after which a unit is dead; default one pass over the rows trained on.
        key: int64 [2], or an int, for starting values, the sample and the order of rows.
        device: where to train; default where the features are.
        progress: True shows a bar where standard error is a terminal; a function is called after each epoch with its
            number and mean loss.

    Returns:
        the model, float32 and in evaluation mode, and a `SAEReport` over at most 16,384 rows, a uniform sample which
        shares no row with those trained on where there are enough others.

    Raises:
        TypeError: ``features`` is no such source or not floating point, or a count is not an int.
        ValueError: a shape or number is out of range, or a row of ``features`` holds NaN or infinity.
        FloatingPointError: the loss is no longer finite.

    Warns:
        UserWarning: the model explains less than half of the variance: most of what tells rows apart is then not in
            the factors.

    Example:
        >>> import pysel
        >>> model, report = train_sae(torch.eye(16), 16, 2, epochs=2, lr=0.1, key=pysel.key(0))
        >>> len(report.losses)
        2
    """
    op = "train_sae"
    training = Training(
        num_factors=num_factors,
        k=k,
        activation=activation,
        tied=tied,
        revive=revive,
        max_rows=max_rows,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        aux_k=aux_k,
        aux_weight=aux_weight,
        dead_after=dead_after,
        key=key,
        progress=progress,
    )
    where = None if device is None else torch.device(device)
    rows = features if isinstance(features, Rows) else Rows(features, op, "features")
    draws = training.draw(len(rows), rows.op, rows.name)
    began = time.perf_counter()
    if draws.trained.numel() < len(rows):
        for _ in rows.batches(8192):  # whose checks find a bad row now, and not when all are scored
            pass
    model, report = training.run(rows.take, draws, where or rows.device, rows.op, rows.name)
    return model, replace(report, seconds=time.perf_counter() - began)


class Draws(NamedTuple):
    """Numbers of rows, ascending."""

    trained: Tensor  # int64 [m] to train on
    judged: Tensor  # int64, for the report


@dataclass
class Training:
    """What `train_sae` is asked for, checked, and how it goes about it, wherever the rows come from."""

    num_factors: int
    k: int
    activation: str
    tied: bool
    revive: str | None
    max_rows: int | None
    epochs: int | None
    batch_size: int
    lr: float
    aux_k: int | None
    aux_weight: float
    dead_after: int | None
    key: Any  # once checked, a Tensor
    progress: bool | Callable[[int, float], None] | None

    def __post_init__(self) -> None:
        op = "train_sae"
        if self.epochs is not None:
            self.epochs = _checks.in_range(op, "epochs", self.epochs, 0)
        self.batch_size = _checks.in_range(op, "batch_size", self.batch_size, 1)
        if self.max_rows is not None:
            self.max_rows = _checks.in_range(op, "max_rows", self.max_rows, 1)
        self.lr = _checks.within(op, "lr", self.lr, "(0, inf)")
        if not (self.progress is None or isinstance(self.progress, bool) or callable(self.progress)):
            raise TypeError(f"{op}: progress must be True, False or a function, got {type(self.progress).__name__}")
        self.key = as_key(op, self.key)
        checked = self.model(1, 1, torch.device("meta"))
        self.num_factors, self.k, self.tied = checked.num_factors, checked.k, checked.tied
        self.aux_k = None if self.aux_k is None else checked.aux_k
        self.aux_weight = checked.aux_weight
        self.dead_after = None if self.dead_after is None else checked.dead_after

    def model(self, d: int, rows: int, device: torch.device) -> TopKSAE:
        """One that is to be trained on so many rows."""
        return TopKSAE(
            d,
            self.num_factors,
            self.k,
            activation=self.activation,
            tied=self.tied,
            revive=self.revive,
            aux_k=self.aux_k,
            aux_weight=self.aux_weight,
            dead_after=rows if self.dead_after is None else self.dead_after,
            key=split(self.key, 3)[0],
            device=device,
            dtype=torch.float32,
        )

    def draw(self, n: int, op: str, name: str) -> Draws:
        """The rows of ``n`` that are needed.

        Raises:
            ValueError: they are too few.
        """
        m = n if self.max_rows is None else min(n, self.max_rows)
        if self.num_factors > m:
            told = f"the {n} rows of {name}" if m == n else f"max_rows, {m}"
            raise ValueError(f"{op}: num_factors must be at most {told}, got {self.num_factors}")
        judged = min(m, _JUDGED)
        order = ops.permutation(n, key=split(self.key, 3)[2], stop=min(n, m + judged))
        return Draws(order[:m].sort().values, order[-judged:].sort().values)

    def run(
        self, take: Callable[[Tensor], Tensor], draws: Draws, device: torch.device, op: str, name: str
    ) -> tuple[TopKSAE, SAEReport]:
        """The model and its report: ``take`` gives the rows of the numbers drawn, errors name ``op`` and ``name``."""
        m = draws.trained.numel()
        epochs = -(-_STEPS // -(-m // self.batch_size)) if self.epochs is None else self.epochs
        # A caller's inference mode, autocast or default dtype must not reach in.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            taken = take(draws.trained)
            model = self.model(taken.size(1), m, device)
            x, centre, unit = _prepare(taken.to(device), model, op, name)
            del taken
            losses = _fit(model, x, epochs, self.batch_size, self.lr, split(self.key, 3)[1], self.progress)
            with torch.no_grad():
                model.bias.copy_(centre.double() + unit * model.bias.double())
                model.encoder_bias.mul_(unit)
                model.spread.mul_(unit)
            del x
            model.eval()
            report = evaluate_sae(model, Rows(take(draws.judged), op, name))
        if epochs and not report.explained_variance >= _POOR:
            warnings.warn(
                f"{op}: the autoencoder explains only {report.explained_variance:.1%} of the variance of {name}; "
                f"more epochs ({epochs}), a larger k ({self.k}) or num_factors ({self.num_factors}) describe more, and "
                "features whose scales differ should be standardised",
                stacklevel=3,
            )
        return model, replace(report, losses=losses)


@torch.no_grad()
def _prepare(taken: Tensor, model: TopKSAE, op: str, name: str) -> tuple[Tensor, Tensor, float]:
    """Rows in float32, about their median and in units of about their spread."""
    # A place to start from: it need not be exact, but what x is centred on must be what the bias will hold.
    centre = geometric_median(taken, tolerance=1e-4, max_rows=8192).float()
    x = taken - centre
    top = power_of_two(x.abs().max())  # squares must neither overflow nor vanish
    spread = float(top) * float(torch.var(x / top, dim=0, correction=0).mean()) ** 0.5
    largest = float(centre.abs().max())
    if spread <= torch.finfo(taken.dtype).eps * largest:  # constant: nothing is to blur it
        return torch.zeros_like(x, dtype=torch.float32), taken[0].float(), 1.0
    if not 1e-30 < spread < 1e30 > largest:
        raise ValueError(
            f"{op}: {name} must lie within 1e30 and vary by 1e-30 to 1e30 (root mean square) to be "
            f"computed with in float32, got values near {largest:.1e} that vary by {spread:.1e}"
        )
    if largest > 2**17 * spread:  # the bias, rounded to float32, would be off by a percent of the spread
        raise ValueError(
            f"{op}: {name} must be centred to be computed with in float32: values near {largest:.1e} vary by "
            f"{spread:.1e} only"
        )
    unit = 2.0 ** round(math.log2(spread))  # a power of two: divided by it, no value is rounded
    model.spread.fill_(spread / unit)
    return x.div_(unit).float(), centre, unit


def _fit(
    model: TopKSAE,
    x: Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    key: Tensor,
    progress: bool | Callable[[int, float], None] | None,
) -> list[float]:
    """Mean loss of each epoch."""
    m = x.size(0)
    steps = epochs * -(-m // batch_size)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    losses: list[float] = []
    step = 0
    # disable=None: no bar where it would not be seen
    with tqdm(total=steps, desc="autoencoder", unit="step", disable=None if progress is True else True) as bar:
        for epoch in range(epochs):
            running = 0.0
            for batch in ops.permutation(m, key=fold_in(key, epoch).to(x.device)).split(batch_size):
                for group in optimiser.param_groups:
                    group["lr"] = lr * (1 - step / steps)
                loss = model.loss(x[batch])
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"train_sae: the loss became {value} at step {step} of {steps}: try an lr below {lr:g}, or "
                        "features without values far outside the others' range"
                    )
                optimiser.zero_grad()
                loss.backward()
                model.project_decoder_grad_()
                optimiser.step()
                model.normalise_decoder_()
                running += value * batch.numel()
                step += 1
                bar.update()
            losses.append(running / m)
            bar.set_postfix(loss=losses[-1])
            if callable(progress):
                progress(epoch, losses[-1])
    return losses
