"""Dynamic selection by representativeness and process-level diversity, after arXiv 2603.04981.

From the paper (its abstract; neither full text nor code could be had): a subset is ranked anew for each
epoch. Representativeness is coverage of factors that are common in the data set, diversity is a property of
the whole training run in which rare factors come in gradually; factors are the units of a sparse autoencoder
trained on the target data; both score tables are made once, before training; a usage-frequency penalty
rotates the samples; a smooth schedule moves from common to rare.

Ours: the formulas. With a_ij = 1 where unit j is active in sample i, and rate f_j = mean_i a_ij,

    R_i = sum_j a_ij f_j / sum_j a_ij                      representativeness
    D_i = sum_j a_ij (-log(f_j + eps)) / sum_j a_ij        rarity
    score_t(i) = (1 - lam_t) R_i + lam_t D_i, less a penalty on n_i, the number of times i has been used

with R and D normalised to [0, 1]; every constant is an argument.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.nn import SAEReport, TopKSAE, train_sae
from pysel.random import fold_in, split
from pysel.random import key as new_key
from pysel.selection.schedule import Schedule, balance, resolve
from pysel.selection.subset import Strata, subset_size


class FactorTables(NamedTuple):
    """What dynamic selection needs to know of a data set, computed once."""

    representativeness: Tensor  # [N]
    rarity: Tensor  # [N]
    rate: Tensor  # [H] fraction of samples in which each factor is active


@torch.no_grad()
def factor_tables(
    sae: TopKSAE,
    features: Tensor,
    *,
    weighted: bool = False,
    rare_below: float | None = None,
    eps: float = 1e-8,
    batch_size: int = 8192,
) -> FactorTables:
    """Score every sample by the factors active in it, in two passes and without storing the codes.

    Args:
        sae: trained on these features, or on ones like them.
        features: [N, d].
        weighted: weigh a factor by its activation rather than count it.
        rare_below: rarity looks only at factors of lower rate; a sample with none has rarity 0.
        eps: keeps the logarithm finite.
        batch_size: rows at a time.

    Returns:
        `FactorTables`, float32 or wider.

    Raises:
        ValueError: ``features`` does not fit the model, or is empty.

    Example:
        >>> import pysel
        >>> sae = pysel.nn.TopKSAE(4, 16, 2, key=pysel.key(0))
        >>> tables = factor_tables(sae, torch.randn(10, 4))
        >>> tables.rarity.shape, tables.rate.shape
        (torch.Size([10]), torch.Size([16]))
    """
    if features.dim() != 2 or features.size(0) == 0 or features.size(1) != sae.in_features:
        raise ValueError(
            f"factor_tables: features must be [N, {sae.in_features}] with N > 0, got {list(features.shape)}"
        )
    batches = features.split(batch_size)
    counts = torch.zeros(sae.num_factors, dtype=torch.int64, device=features.device)
    for batch in batches:
        counts += ops.factor_counts(*sae.encode(batch), sae.num_factors)
    rate = (counts.double() / features.size(0)).to(torch.promote_types(features.dtype, torch.float32))

    common, rare = [], []
    for batch in batches:
        values, indices = sae.encode(batch)
        values = values.to(rate.dtype)
        among_rare = values if rare_below is None else values.where(rate[indices] < rare_below, 0)
        if weighted:
            common.append(_weighted_mean(values, rate[indices]))
            rare.append(_weighted_mean(among_rare, -torch.log(rate[indices] + eps)))
        else:
            tables = torch.stack([rate, -torch.log(rate + eps)])
            common.append(ops.factor_scores(values, indices, tables[0], reduce="mean"))
            rare.append(ops.factor_scores(among_rare, indices, tables[1], reduce="mean"))
    return FactorTables(torch.cat(common), torch.cat(rare), rate)


def _weighted_mean(weights: Tensor, x: Tensor) -> Tensor:
    """Means of the rows of ``x`` under non-negative weights; 0 where a row has none."""
    return (weights * x).sum(1) / weights.sum(1).clamp_min(torch.finfo(weights.dtype).tiny)


def to_unit_interval(scores: Tensor, how: str | None = "minmax") -> Tensor:
    """Bring scores to [0, 1].

    Args:
        scores: [N] floating point.
        how: "minmax" (linear), "rank" (mean rank of equal scores, over N - 1), or None: they must be there
            already.

    Returns:
        [N]; all 0 if every score is the same.

    Raises:
        ValueError: an unknown ``how``, a score that is not finite, or with None one outside [0, 1].

    Example:
        >>> to_unit_interval(torch.tensor([1.0, 3.0, 3.0, 9.0]), "rank")
        tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """
    op = "to_unit_interval"
    _checks.tensor(op, "scores", scores)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"{op}: scores must be finite, got NaN or infinity")
    low, high = scores.min(), scores.max()
    if how is None:
        if low < 0 or high > 1:
            raise ValueError(f"{op}: scores must lie in [0, 1], got {low:g} to {high:g}")
        return scores
    _checks.choice(op, "how", how, ("minmax", "rank"))
    if low == high:
        return torch.zeros_like(scores)
    if how == "minmax":
        return (scores - low) / (high - low)
    _, group, size = torch.unique(scores, return_inverse=True, return_counts=True)
    last = size.cumsum(0) - 1
    mean_rank = last.double() - (size - 1).double() / 2
    return (mean_rank / (scores.numel() - 1))[group].to(scores.dtype)


class DynamicSelector:
    """Picks each epoch's subset by representativeness, rarity and how often a sample has been used.

    After arXiv 2603.04981; this module's docstring says what is the paper's and what is ours. Build it with
    `from_features`, or with `from_scores` from tables made elsewhere.

    Selection is a function of the tables, the arguments, the key (when stochastic) and the epochs selected
    before. With the linear penalty, no decay, deterministic ranking and no labels, no sample gets ahead of
    another by more than ``1 / gamma + 1`` uses, whatever the scores.

    Over several ranks make the tables on one and broadcast them: matrix products differ in their last bits
    between devices of different kinds, and with them the ranks of near-equal samples.

    Args:
        representativeness: [N] floating point.
        rarity: [N], same dtype and device.
        keep_ratio: fraction of samples **kept**, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``.
        epochs: length of training, in which ``schedule`` runs from 0 to 1 (ours: progress is epoch / epochs).
        gamma: weight of the usage penalty (ours). Scores spread by 0.13 to 0.18 (standard deviation) on the data we
            tried, so at the default one use costs somewhat less than that; from 0.5 on uses alone decide, and the
            schedule no longer shows in what is selected.
        penalty: "linear" ``s - gamma n``, "exp" ``s exp(-gamma n)`` or "rate" ``s - gamma n / t``, with t the
            number of selections made so far (ours).
        decay: factor on the counts at every selection; below 1 old uses are forgotten (ours).
        schedule: weight of rarity over progress: "sigmoid", "cosine", "linear", "constant", a number, or a
            function from [0, 1] to [0, 1] (ours; the paper asks for a smooth one).
        normalise: "minmax", "rank", or None for tables already in [0, 1] (ours).
        temperature: None ranks deterministically; a number draws without replacement in proportion to
            ``exp(score / temperature)`` (Gumbel-top-k; ours).
        labels: integers [N]: every class keeps its share and at least one sample (ours).
        key: int64 [2] for the stochastic ranking; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or tables that do not match.

    Example:
        >>> selector = DynamicSelector.from_scores(torch.rand(100), torch.rand(100), 0.3, epochs=10)
        >>> selector.select(0).shape, len(selector), selector.realised_ratio
        (torch.Size([30]), 30, 0.3)
    """

    sae: TopKSAE | None = None  # set by from_features
    report: SAEReport | None = None
    factor_rate: Tensor | None = None

    def __init__(
        self,
        representativeness: Tensor,
        rarity: Tensor,
        keep_ratio: float,
        epochs: int,
        *,
        gamma: float = 0.1,
        penalty: str = "linear",
        decay: float = 1.0,
        schedule: str | float | Schedule = "sigmoid",
        normalise: str | None = "minmax",
        temperature: float | None = None,
        labels: Tensor | None = None,
        key: Tensor | None = None,
    ) -> None:
        name = "DynamicSelector"
        _checks.tensor(name, "representativeness", representativeness)
        _checks.tensor(name, "rarity", rarity)
        _checks.same_device(name, "rarity", rarity, "representativeness", representativeness)
        if representativeness.dim() != 1 or representativeness.numel() == 0:
            raise ValueError(f"{name}: representativeness must be [N], got {list(representativeness.shape)}")
        if rarity.shape != representativeness.shape:
            wanted, got = list(representativeness.shape), list(rarity.shape)
            raise ValueError(f"{name}: rarity must have the shape of representativeness, {wanted}, got {got}")
        _checks.integer(name, "epochs", epochs)
        if epochs < 1:
            raise ValueError(f"{name}: epochs must be at least 1, got {epochs}")
        _checks.number(name, "gamma", gamma)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"{name}: gamma must be finite and at least 0, got {gamma!r}")
        _checks.choice(name, "penalty", penalty, ("linear", "exp", "rate"))
        _checks.number(name, "decay", decay)
        if not 0 <= decay <= 1:
            raise ValueError(f"{name}: decay must be between 0 and 1, got {decay!r}")
        if temperature is not None:
            _checks.number(name, "temperature", temperature)
            if not 0 < temperature < math.inf:
                raise ValueError(f"{name}: temperature must be positive and finite, got {temperature!r}")

        wide = torch.promote_types(representativeness.dtype, torch.float32)
        self.representativeness = to_unit_interval(representativeness.detach().to(wide), normalise)
        self.rarity = to_unit_interval(rarity.detach().to(wide), normalise)
        self.num_samples = representativeness.numel()
        self.keep_ratio = keep_ratio
        self.epochs = epochs
        self.gamma, self.penalty, self.decay = float(gamma), penalty, float(decay)
        self.schedule = resolve(schedule)
        self.temperature = temperature
        size = subset_size(keep_ratio, self.num_samples)
        self._strata = Strata(self.num_samples, size, labels, device=self.rarity.device)
        self._key = new_key(device="cpu") if key is None and temperature is not None else key
        self.reset()

    @classmethod
    def from_scores(
        cls, representativeness: Tensor, rarity: Tensor, keep_ratio: float, epochs: int, **options: Any
    ) -> DynamicSelector:
        """From tables made elsewhere; ``options`` are those of the class.

        Example:
            >>> DynamicSelector.from_scores(torch.rand(10), torch.rand(10), 0.5, epochs=3, gamma=0.2)
            DynamicSelector(num_samples=10, keep_ratio=0.5, epochs=3)
        """
        return cls(representativeness, rarity, keep_ratio, epochs, **options)

    @classmethod
    def from_features(
        cls,
        features: Tensor,
        keep_ratio: float,
        epochs: int,
        *,
        num_factors: int = 1024,
        k: int = 16,
        sae_epochs: int = 5,
        sae_batch_size: int = 512,
        sae_lr: float = 1e-3,
        weighted: bool = False,
        rare_below: float | None = None,
        eps: float = 1e-8,
        key: Tensor | None = None,
        **options: Any,
    ) -> DynamicSelector:
        """Train a sparse autoencoder on features and score every sample with it, once.

        Args:
            features: [N, d] in any feature space, of comparable scales; see `pysel.selection.features`.
            keep_ratio, epochs: see the class.
            num_factors, k: units of the autoencoder, and how many a sample activates (ours).
            sae_epochs, sae_batch_size, sae_lr: its training, see `pysel.nn.train_sae` (ours).
            weighted, rare_below, eps: how factors are scored, see `factor_tables` (ours).
            key: int64 [2] for the autoencoder and for stochastic ranking.
            options: the other arguments of the class.

        Returns:
            a selector that also has ``sae``, ``report`` (`pysel.nn.SAEReport`) and ``factor_rate``
            [num_factors].

        Raises:
            TypeError, ValueError: see `pysel.nn.train_sae` and the class.

        Example:
            >>> import pysel
            >>> selector = DynamicSelector.from_features(
            ...     torch.randn(64, 8), 0.5, epochs=4, num_factors=32, k=4, sae_epochs=1, key=pysel.key(0)
            ... )
            >>> selector.select(0).numel(), selector.report.num_factors
            (32, 32)
        """
        sae_key, rank_key = split(new_key(device="cpu") if key is None else key, 2)
        sae, report = train_sae(
            features, num_factors, k, epochs=sae_epochs, batch_size=sae_batch_size, lr=sae_lr, key=sae_key
        )
        tables = factor_tables(sae, features, weighted=weighted, rare_below=rare_below, eps=eps)
        selector = cls(tables.representativeness, tables.rarity, keep_ratio, epochs, key=rank_key, **options)
        selector.sae, selector.report, selector.factor_rate = sae, report, tables.rate
        return selector

    def __repr__(self) -> str:
        size = f"num_samples={self.num_samples}, keep_ratio={self.keep_ratio}"
        return f"DynamicSelector({size}, epochs={self.epochs})"

    def __len__(self) -> int:
        """Samples in each epoch's subset."""
        return self._strata.size

    @property
    def realised_ratio(self) -> float:
        """Fraction really kept: a little above ``keep_ratio`` where that is not a whole number of samples."""
        return len(self) / self.num_samples

    def steps(self, batch_size: int, drop_last: bool = False) -> int:
        """Batches in the next epoch."""
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def rarity_weight(self, epoch: int) -> float:
        """lam_t, the schedule's weight of rarity at an epoch; past the planned end it stays at the end's."""
        return balance(self.schedule, min(epoch / self.epochs, 1.0))

    @property
    def counts(self) -> Tensor:
        """[N] uses of each sample so far (decayed ones, if there is a decay), the current subset included."""
        counts = self._counts.clone()
        return counts if self._selected is None else ops.usage_update_(counts, self._selected, self.decay)

    def reset(self) -> None:
        """Forget all selections."""
        self._epoch = -1
        self._rounds = 0
        self._selected: Tensor | None = None
        # The current subset is not counted in here: the next selection adds it, in one pass with the penalty.
        # So asking for the same epoch twice cannot count twice.
        self._counts = torch.zeros_like(self.representativeness)

    def select(self, epoch: int) -> Tensor:
        """The subset of an epoch.

        Epochs go forward and may be skipped (a skipped one counts no uses). The current epoch may be asked
        for again and gives the same subset.

        Args:
            epoch: from 0.

        Returns:
            int64 [len(self)] ascending indices.

        Raises:
            TypeError: ``epoch`` is not an int.
            ValueError: it is negative, or before the last one selected.
        """
        _checks.integer("DynamicSelector", "epoch", epoch)
        if epoch < 0:
            raise ValueError(f"DynamicSelector: epoch must be at least 0, got {epoch}")
        if epoch < self._epoch:
            raise ValueError(
                f"DynamicSelector: epoch must be at least {self._epoch}, the last one selected, got {epoch}; "
                "load an earlier state_dict or call reset()"
            )
        if self._selected is None or epoch > self._epoch:
            scores = self._scores(epoch)
            if self.temperature is None:
                self._selected = self._strata.best(scores)
            else:
                assert self._key is not None
                self._selected = self._strata.sample(scores / self.temperature, fold_in(self._key, epoch))
            self._epoch = epoch
            self._rounds += 1
        return self._selected.clone()

    def importance_weights(self) -> Tensor:
        """Weights of the current subset's samples under which it stands for all of them, if ranking is stochastic.

        The mean of weight times loss over the subset is an unbiased estimate of the mean loss over all samples, and so
        is its gradient: a sample's weight is the inverse of its chance to be selected, scaled to 1 on average. The
        smaller the temperature, the more the weights, and with them the estimates, scatter.

        Returns:
            [len(self)], in the order of `select`.

        Raises:
            ValueError: ranking is deterministic (no temperature), or nothing has been selected yet.

        Example:
            >>> import pysel
            >>> selector = DynamicSelector.from_scores(
            ...     torch.rand(100), torch.rand(100), 0.3, epochs=10, temperature=0.5, key=pysel.key(0)
            ... )
            >>> subset, weights = selector.select(0), torch.zeros(100)
            >>> weights[subset] = selector.importance_weights()  # by sample, for the losses of a batch

        Source: Kool et al., arXiv 1903.06059, for the estimate; to use it here is ours.
        """
        if self.temperature is None:
            raise ValueError("DynamicSelector: temperature must be a number for importance weights, got None")
        if self._selected is None:
            raise ValueError("DynamicSelector: importance weights are those of a selected subset: call select() first")
        assert self._key is not None
        scores = self._mixed(self._epoch)
        step = max(self._rounds - 1, 1)  # as when the subset was selected
        ops.usage_penalty(scores, self._counts, self.gamma, self.penalty, step, out=scores)
        probability = self._strata.inclusion(scores / self.temperature, fold_in(self._key, self._epoch))
        return self.realised_ratio / probability

    def _mixed(self, epoch: int) -> Tensor:
        """Scores [N] without the penalty."""
        return torch.lerp(self.representativeness, self.rarity, self.rarity_weight(epoch))

    def _scores(self, epoch: int) -> Tensor:
        """Penalised scores [N]; takes the previous subset into the counts."""
        scores = self._mixed(epoch)
        step = max(self._rounds, 1)
        if self._selected is None:
            return ops.usage_penalty(scores, self._counts, self.gamma, self.penalty, step, out=scores)
        return ops.usage_step_(
            self._counts, self._selected, scores, self.gamma, self.decay, self.penalty, step, out=scores
        )

    def state_dict(self) -> dict[str, Any]:
        """Uses, epoch and current subset. The tables are not included: they are inputs."""
        return {
            "epoch": self._epoch,
            "rounds": self._rounds,
            "counts": self._counts.clone(),
            "selected": None if self._selected is None else self._selected.clone(),
            "key": None if self._key is None else self._key.clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a selector with the same tables and arguments.

        Raises:
            ValueError: entries are missing, or the state is of another number of samples or subset size.
        """
        missing = [name for name in self.state_dict() if name not in state_dict]
        if missing:
            raise ValueError(f"DynamicSelector: state_dict must have {', '.join(missing)}")
        counts, selected = state_dict["counts"], state_dict["selected"]
        if counts.shape != (self.num_samples,):
            raise ValueError(
                f"DynamicSelector: state_dict must have {self.num_samples} counts, got {list(counts.shape)}"
            )
        if selected is not None and selected.shape != (len(self),):
            raise ValueError(f"DynamicSelector: state_dict must have {len(self)} selected, got {list(selected.shape)}")
        self._epoch, self._rounds = state_dict["epoch"], state_dict["rounds"]
        self._counts = counts.to(self._counts, copy=True)
        self._selected = None if selected is None else selected.to(self._counts.device, copy=True)
        self._key = None if state_dict["key"] is None else state_dict["key"].clone()
