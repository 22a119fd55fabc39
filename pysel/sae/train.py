"""Training and judging a sparse autoencoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.random import fold_in, split
from pysel.random import key as new_key
from pysel.sae.model import TopKSAE, _check_matrix

__all__ = ["SAEReport", "evaluate_sae", "train_sae"]


@dataclass(frozen=True)
class SAEReport:
    """How well a sparse autoencoder describes a data set."""

    explained_variance: float  # 1 - fraction of variance unexplained
    l0: float  # mean number of active units in a row
    dead: int  # units that no row activates
    num_factors: int
    seconds: float = 0.0  # training time
    losses: list[float] = field(default_factory=list)  # mean of each epoch

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return 1.0 - self.explained_variance

    def __str__(self) -> str:
        return (
            f"explained variance {self.explained_variance:.1%}, L0 {self.l0:.1f}, "
            f"dead units {self.dead}/{self.num_factors}"
        )


@torch.no_grad()
def evaluate_sae(model: TopKSAE, features: Tensor, batch_size: int = 8192) -> SAEReport:
    """Explained variance, L0 and dead units of ``model`` on ``features`` [N, d], in batches."""
    _check_matrix("evaluate_sae", "features", features)
    counts = torch.zeros(model.num_factors, dtype=torch.int64, device=features.device)
    unexplained = 0.0
    for batch in features.split(batch_size):
        reconstruction, values, indices = model(batch)
        unexplained += float((batch - reconstruction).double().square().sum())
        counts += ops.factor_counts(values, indices, model.num_factors)
    total = float(features.double().var(0, correction=0).sum()) * features.size(0)
    return SAEReport(
        explained_variance=1.0 - unexplained / total if total > 0 else float(unexplained == 0),
        l0=int(counts.sum()) / features.size(0),
        dead=int((counts == 0).sum()),
        num_factors=model.num_factors,
    )


def train_sae(
    features: Tensor,
    num_factors: int,
    k: int,
    *,
    epochs: int = 5,
    batch_size: int = 512,
    lr: float = 1e-3,
    aux_k: int | None = None,
    aux_weight: float = 1 / 32,
    dead_after: int | None = None,
    key: Tensor | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[TopKSAE, SAEReport]:
    """Train a `TopKSAE` with Adam, the learning rate falling linearly to zero.

    The result depends on the features, the arguments and the key, and on nothing else on one device; devices
    differ in the last bits of matrix products.

    Args:
        features: [N, d] floating point, best with comparable scales (`pysel.selection.features.standardise`).
        num_factors: number of units, H.
        k: activations kept.
        epochs: passes over the features; 0 gives the initial model.
        batch_size: rows a step.
        lr: initial learning rate.
        aux_k, aux_weight: see `TopKSAE`.
        dead_after: samples without activity after which a unit is dead; default one pass over the features.
        key: int64 [2] for starting values and the order of rows.
        progress: called after each epoch with its number and mean loss.

    Returns:
        the model in evaluation mode, and a `SAEReport` over all features.

    Raises:
        TypeError: ``features`` is not a floating-point tensor, or a count is not an int.
        ValueError: a shape or number is out of range, or ``features`` holds NaN or infinity.

    Example:
        >>> import pysel
        >>> model, report = train_sae(torch.eye(16), 32, 2, epochs=2, key=pysel.key(0))
        >>> len(report.losses)
        2
    """
    _check_matrix("train_sae", "features", features)
    if not torch.isfinite(features).all():
        raise ValueError("train_sae: features must be finite, got NaN or infinity")
    _checks.in_range("train_sae", "epochs", epochs, 0, None)
    _checks.in_range("train_sae", "batch_size", batch_size, 1, None)
    if not lr > 0:
        raise ValueError(f"train_sae: lr must be positive, got {lr!r}")

    began = time.perf_counter()
    n, d = features.shape
    init_key, order_key = split(new_key(device="cpu") if key is None else key, 2)
    model = TopKSAE(
        d,
        num_factors,
        k,
        aux_k=aux_k,
        aux_weight=aux_weight,
        dead_after=n if dead_after is None else dead_after,
        key=init_key,
        device=features.device,
        dtype=features.dtype,
    ).initialise_(features)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    total_steps = epochs * -(-n // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(total_steps, 1))
    equal = torch.ones(n, device=features.device)
    losses: list[float] = []
    for epoch in range(epochs):
        running = torch.zeros((), device=features.device)
        for rows in ops.weighted_sample(equal, n, key=fold_in(order_key, epoch)).split(batch_size):
            optimiser.zero_grad()
            loss = model.loss(features[rows])
            loss.backward()
            model.project_decoder_grad_()
            optimiser.step()
            schedule.step()
            model.normalise_decoder_()
            running += loss.detach() * rows.numel()
        losses.append(float(running) / n)
        if progress is not None:
            progress(epoch, losses[-1])
    model.eval()
    result = evaluate_sae(model, features)
    return model, SAEReport(
        explained_variance=result.explained_variance,
        l0=result.l0,
        dead=result.dead,
        num_factors=num_factors,
        seconds=time.perf_counter() - began,
        losses=losses,
    )
