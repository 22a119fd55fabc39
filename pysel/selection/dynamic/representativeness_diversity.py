"""Dynamic selection by representativeness and diversity (arXiv 2603.04981).

Each epoch's subset is ranked anew. Representativeness is coverage of the factors that are common in the data set,
diversity that of rare ones (`pysel.sae.factors`); a penalty on past uses rotates the samples, and a
schedule moves from common to rare. With Rep and Div brought to [0, 1], and u_i the epochs that have used sample i
before epoch t = 1, ..., T::

    H_i(t) = alpha(t) Rep_i + (1 - alpha(t)) Div_i - gamma log(1 + u_i)
    S(t)   = the keep_ratio N samples of largest H, as many from every class; in the last refine T epochs all samples

Ours: the size is rounded up, not down; a class too small for its share gives all it has and the others share the rest;
equal scores are ordered at random, anew in each epoch; and what the arguments' descriptions say is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key, fold_in, split
from pysel.sae import FactorTables, SAEReport, TopKSAE, factor_tables, train_sae
from pysel.sae.factors import check_model, check_options
from pysel.sae.rows import Rows
from pysel.selection.dynamic.plan import Planned
from pysel.selection.dynamic.unit_interval import to_unit_interval
from pysel.selection.schedule import Schedule
from pysel.selection.state import lasting
from pysel.selection.subset import Strata

if TYPE_CHECKING:
    from typing_extensions import Self


class DynamicSelector(Planned):
    """Picks each epoch's subset by representativeness, diversity and how often a sample has been used.

    Algorithm 1 of arXiv 2603.04981; this module's docstring has the formulas and says what is ours. Build it with
    `from_features`, or with `from_scores` from tables made elsewhere.

    A subset is a pure function of the tables, the arguments, the key and the epoch. What was used before is not
    recorded but replayed: asking for an epoch costs one pass over the tables for every epoch since the one asked for
    before, or since the first when going back or loading a state. At N = 1e8 a pass takes 0.3 s on two Zen 4 cores,
    with classes 0.6 to 0.8 s.

    Two bounds on how unevenly samples are used. With the log penalty (the paper's theorem 3.1) and scores that differ
    by at most D, a sample with u_i >= (1 + u_j) exp(D / gamma) - 1 ranks no higher than j: at D = 1 and gamma = 0.2
    that is 147 uses against none, which hardly binds. With the linear penalty, without classes and tail, no sample gets
    ahead of another by more than 1 / gamma + 1 uses (ours).

    What it is worth, measured by us with small networks and principal components as features, all methods at the same
    number of steps (bench/results/EXPERIMENTS.md). On even classes it is within 0.3 points of `DynamicRandom`, on
    either side, and 0.2 to 0.9 points below `InfoBatch`, which needs the losses. Representativeness is what costs, the
    usage penalty is what one cannot do without; ``schedule=0.0``, diversity alone, is mostly a little better than the
    published mix. On uneven classes ``balance`` decides, and more than any score: with ``balance_losses`` it is worth
    7 points where test classes are even, and costs 2 to 4 where they are as uneven as in training; there take
    ``balance="proportional"``.

    Over several ranks make the tables on one and broadcast them: matrix products differ in their last bits between
    devices of different kinds, and with them the ranks of near-equal samples.

    Args:
        representativeness: [N] floating point, tensor or numpy array.
        diversity: [N].
        keep_ratio: fraction of samples **kept**, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``.
        epochs: T, the length of training.
        labels: integers [N].
        balance: "equal", the same number from every class, as in the paper; "proportional", every class keeps its share
            and at least one sample; None ranks all samples together (these two are ours). Nothing without labels.
        gamma: weight of the usage penalty; the paper's is 0.2.
        penalty: "log" ``s - gamma log(1 + u)``, the paper's; "linear" ``s - gamma u``, "exp" ``s exp(-gamma u)`` or
            "rate" ``s - gamma u / (t - 1)`` (ours).
        schedule: weight of representativeness over progress t / T: "sigmoid" from near 1 to 0.2, the paper's;
            "cosine", "linear", "constant", a number, or a function from (0, 1] to [0, 1] (ours).
        refine: in the last epochs, this share of T, all samples are used; 0.15 in the paper. The realised ratio is then
            ``(1 - refine) keep_ratio + refine``. Past the planned end all samples are used, too, unless it is 0.
        balance_losses: with ``labels`` and ``balance``, `weights` gives every class exactly its share of the loss in
            each epoch, also where one has too few samples for it, and in the last ones (ours). Without, as in the
            paper, the last and most decisive epochs undo the balance: on a long tail of classes they take back nearly
            all that it had won.
        normalise: "minmax", the paper's; "clip" to the 1st and 99th percentile before, "rank", or None for tables
            already in [0, 1] (ours): see `to_unit_interval`.
        temperature: None ranks deterministically; a number, at least 1e-30, draws without replacement in proportion to
            ``exp(H / temperature)`` (Gumbel-top-k; ours), and `weights` then makes a subset stand for all samples.
        key: int64 [2] or an int, for the order of equal scores and the draws; drawn from torch's default generator when
            missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or tables that do not match.

    Example:
        >>> selector = DynamicSelector.from_scores(torch.rand(100), torch.rand(100), 0.3, epochs=10, key=0)
        >>> selector.select(0).shape, len(selector), selector.realised_ratio
        (torch.Size([30]), 30, 0.44)
    """

    sae: TopKSAE | None = None  # these are set by from_features
    report: SAEReport | None = None
    factors: FactorTables | None = None
    _rows: Rows | None = None

    def __init__(
        self,
        representativeness: Any,
        diversity: Any,
        keep_ratio: float,
        epochs: int,
        *,
        labels: Any = None,
        balance: str | None = "equal",
        gamma: float = 0.2,
        penalty: str = "log",
        schedule: str | float | Schedule = "sigmoid",
        refine: float = 0.15,
        balance_losses: bool = True,
        normalise: str | None = "minmax",
        temperature: float | None = None,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        representativeness = _inputs.vector(name, "representativeness", representativeness)
        diversity = _inputs.vector(name, "diversity", diversity)
        n = representativeness.numel()
        _checks.same_device(name, "diversity", diversity, "representativeness", representativeness)
        if diversity.shape != representativeness.shape:
            raise ValueError(
                f"{name}: diversity must have shape [{n}] like representativeness, got [{diversity.numel()}]"
            )
        super().__init__(
            n,
            keep_ratio,
            epochs,
            balance=balance,
            gamma=gamma,
            penalty=penalty,
            schedule=schedule,
            refine=refine,
            balance_losses=balance_losses,
            normalise=normalise,
            temperature=temperature,
        )
        if normalise is None:
            for argument, table in (("representativeness", representativeness), ("diversity", diversity)):
                low, high = float(table.min()), float(table.max())
                if low < 0 or high > 1:
                    raise ValueError(f"{name}: {argument} must lie in [0, 1], got {low:g} to {high:g} (normalise=None)")

        device = representativeness.device
        self._classes = None if labels is None else _inputs.classes(name, "labels", labels, n)
        ranked = None if self._classes is None or balance is None else self._classes.ids
        self._strata = Strata(
            n, self._size, ranked, balance=balance or "proportional", device=device, op=name, name="keep_ratio"
        )
        self._loss_weights: tuple[Tensor, Tensor] | None = None
        if self._strata.quotas is not None:
            self._loss_weights = self._class_weights(self._strata.quotas, self._strata.sizes)
        self._set_tables(representativeness, diversity)
        self._set_key(as_key(name, key))

    def _set_tables(self, representativeness: Tensor, diversity: Tensor) -> None:
        normalise = self._arguments["normalise"]
        self.representativeness = to_unit_interval(representativeness, normalise)
        self.diversity = to_unit_interval(diversity, normalise).to(self.representativeness.dtype)
        self._tables = {"representativeness": self.representativeness, "diversity": self.diversity}
        if self._classes is not None:
            self._tables["labels"], self._tables["classes"] = self._classes.ids, self._classes.labels.long()
        self._digest = None

    def _set_key(self, key: Tensor) -> None:
        self._key = key
        self._epoch = -1
        self._subset: Tensor | None = None  # of that epoch; None for all samples
        self._inverse_chance: Tensor | None = None  # of the subset's samples, scaled to 1 on average
        with torch.inference_mode(False):  # it is written to, wherever the caller is then
            # exact in float32, for epochs are far fewer than 2^24; the subset is in it
            self._uses = torch.zeros(self.num_samples, dtype=torch.float32, device=self.representativeness.device)

    @classmethod
    def from_scores(
        cls, representativeness: Any, diversity: Any, keep_ratio: float, epochs: int, **options: Any
    ) -> DynamicSelector:
        """From tables made elsewhere; ``options`` are those of the class.

        Example:
            >>> selector = DynamicSelector.from_scores(torch.rand(10), torch.rand(10), 0.5, epochs=3, gamma=0.1)
            >>> len(selector.select(0))
            5
        """
        return cls(representativeness, diversity, keep_ratio, epochs, **options)

    @classmethod
    def from_features(
        cls,
        features: Any,
        keep_ratio: float,
        epochs: int,
        *,
        labels: Any = None,
        num_factors: int = 512,
        k: int = 16,
        sae: TopKSAE | None = None,
        sae_options: Mapping[str, Any] | None = None,
        common: float = 0.1,
        class_coverage: str = "once",
        key: Tensor | int | None = None,
        **options: Any,
    ) -> DynamicSelector:
        """Train a sparse autoencoder on features and score every sample with it, once.

        Args:
            features: [N, d] in any feature space, of comparable scales (see `pysel.selection.features`), from any
                source that can be read twice: a tensor, a numpy array, a memory map, an iterable of batches: see
                `pysel.sae.rows.Rows`. `explain` reads from it, too.
            keep_ratio, epochs, labels: see the class.
            num_factors, k: units of the autoencoder, and how many a sample activates (ours; the paper has neither).
            sae: an autoencoder to take instead of training one; ``num_factors`` and ``k`` are then its own.
            sae_options: other arguments of `pysel.sae.train_sae`.
            common, class_coverage: see `factor_tables`.
            key: int64 [2] or an int, for the autoencoder and as in the class.
            options: the other arguments of the class.

        Returns:
            a selector that also has ``sae``, ``report`` (`pysel.sae.SAEReport`; None with ``sae``) and ``factors``
            (`FactorTables`).

        Raises:
            TypeError, ValueError: see `pysel.sae.train_sae`, `factor_tables` and the class; before any work is done.

        Example:
            >>> import pysel
            >>> selector = DynamicSelector.from_features(
            ...     torch.randn(64, 8), 0.5, epochs=4, num_factors=32, k=4, sae_options={"epochs": 1}, key=0
            ... )
            >>> selector.select(0).numel(), selector.report.num_factors
            (32, 32)
        """
        op = f"{cls.__name__}.from_features"
        rows = Rows(features, op, "features")
        sae_key, rank_key = split(as_key(op, key), 2)
        # all is checked before the work: labels and options here, every row here or by train_sae
        check_options(op, common, class_coverage)
        if sae is not None:
            check_model(op, sae)
        else:
            num_factors = _checks.in_range(op, "num_factors", num_factors, 1)
            k = _checks.in_range(op, "k", k, 1, num_factors)
        if not isinstance(sae_options, Mapping | None):
            raise TypeError(f"{op}: sae_options must be a dictionary, got {type(sae_options).__name__}")
        nothing = torch.zeros(rows.shape[0], dtype=torch.float32, device=rows.device)
        selector = cls(nothing, nothing, keep_ratio, epochs, labels=labels, key=rank_key, **options)
        if sae is not None:
            for _ in rows.batches(8192):
                pass
        else:
            sae, selector.report = train_sae(rows, num_factors, k, key=sae_key, **(sae_options or {}))
        tables = factor_tables(sae, rows, labels=labels, common=common, class_coverage=class_coverage)
        selector._set_tables(tables.representativeness.to(rows.device), tables.diversity.to(rows.device))
        selector.sae, selector.factors, selector._rows = sae, tables, rows
        return selector

    # --- selection ---

    @lasting
    def select(self, epoch: int = 0) -> Tensor:
        """The subset of an epoch, counted from 0: int64 ascending indices.

        Raises:
            TypeError, ValueError: ``epoch`` is not an int of 0 or more.
        """
        epoch = _checks.in_range(type(self).__name__, "epoch", epoch, 0)
        if epoch < self._epoch:
            self._uses.zero_()
            self._epoch = -1
        while self._epoch < epoch:
            self._subset, self._inverse_chance = self._next(self._epoch + 1), None
            self._epoch += 1
        if self._subset is None:
            return torch.arange(self.num_samples, device=self._uses.device)
        return self._subset.clone()

    def _next(self, epoch: int) -> Tensor | None:
        """The subset of the epoch after those that have been counted, counted too; None for all samples."""
        if self._is_full(epoch):
            self._uses.add_(1)
            return None
        key = fold_in(self._key, epoch)
        if self.temperature is None:
            return ops.usage_select_(
                self._uses,
                self.representativeness,
                self.diversity,
                1 - self.weight(epoch),
                self._size,
                self.gamma,
                self.penalty,
                max(epoch, 1),
                groups=self._strata.groups,
                quotas=self._strata.quotas,
                key=key,
            )
        subset = self._strata.sample(self._scored(epoch, self._uses).div_(self.temperature), key)
        ops.usage_update_(self._uses, subset)
        return subset

    def _scored(self, epoch: int, uses: Tensor) -> Tensor:
        """H [N] in an epoch, before which samples have been used so often."""
        mix = 1 - self.weight(epoch)
        first, second = self.diversity.new_tensor([1 - mix, mix])  # rounded as usage_select_ does
        scores = self.representativeness * first + self.diversity * second
        return ops.usage_penalty(scores, uses, self.gamma, self.penalty, max(epoch, 1), out=scores)

    def _before(self, epoch: int) -> Tensor:
        """Uses [N] before an epoch, which becomes the current one."""
        self.select(epoch)
        if self._subset is None:
            return self._uses - 1
        before = self._uses.clone()
        before[self._subset] -= 1
        return before

    @lasting
    def weights(self, indices: Any) -> Tensor:
        """Factors for the losses of samples of the current subset.

        With a ``temperature`` they make each class's part of the subset stand for all of the class (for all samples,
        where these are ranked together): the sum of weight times loss over the subset is then an unbiased estimate. A
        sample's weight is the inverse of its chance to be selected, 1 on average; the smaller the temperature, the more
        the weights, and with them the estimates, scatter. With ``balance_losses`` classes are weighted, too.

        Args:
            indices: integers [B], samples of the subset selected last.

        Returns:
            [B], where the indices are.

        Raises:
            TypeError: indices that are not integers.
            ValueError: nothing has been selected yet, an index is out of range, or a sample is not in the subset.

        Source: Kool et al., arXiv 1903.06059, for the estimate; to use it here is ours.
        """
        name = type(self).__name__
        if self._epoch < 0:
            raise ValueError(f"{name}: weights are those of a selected subset: call select() first")
        given = self._samples("weights", indices)
        indices = given.to(self._uses.device)
        weights = torch.ones(indices.shape, dtype=torch.float32, device=indices.device)
        if self._loss_weights is not None:
            assert self._strata.groups is not None
            weights = self._loss_weights[self._subset is None][self._strata.groups[indices].long()]
        if self._subset is not None and self.temperature is not None:
            if self._inverse_chance is None:
                self._inverse_chance = self._importance(self._epoch)
            place = torch.searchsorted(self._subset, indices).clamp_max(self._size - 1)
            outside = self._subset[place] != indices
            if bool(outside.any()):
                raise ValueError(
                    f"{name}: indices must be of the subset of epoch {self._epoch}, got {int(indices[outside][0])}"
                )
            weights = weights * self._inverse_chance[place]
        return weights.to(given.device)

    def _importance(self, epoch: int) -> Tensor:
        """What makes the samples of the current subset stand for all of their class, 1 on average."""
        assert self._subset is not None and self.temperature is not None
        log_weights = self._scored(epoch, self._before(epoch)).div_(self.temperature)
        chance = self._strata.inclusion(log_weights, fold_in(self._key, epoch))
        if self._strata.groups is None or self._strata.quotas is None:
            return self._size / self.num_samples / chance
        share = self._strata.quotas.to(chance.dtype) / self._strata.sizes
        return share[self._strata.groups[self._subset].long()] / chance

    def scores(self, epoch: int) -> Tensor:
        """H [N] in an epoch, the penalty included; its subset holds the largest."""
        return self._scored(epoch, self._before(epoch))

    @property
    def uses(self) -> Tensor:
        """int64 [N]: how many epochs have used each sample, the current one included."""
        return self._uses.long()

    # --- what it did, and why ---

    def explain(self, i: int) -> dict[str, Any]:
        """Why a sample is in the subset of the epoch selected last (the first, if none was), or why not.

        Args:
            i: index of the sample.

        Returns:
            a dictionary of numbers: ``sample``, ``epoch``, its ``label``; ``representativeness`` and ``diversity`` in
            [0, 1], each with its ``rank`` among all samples (1 is the highest); ``weight``, the alpha of the epoch;
            ``uses`` before it, the ``penalty`` for them, and the ``score`` H; whether it is ``taken``, and the
            ``margin`` to the best sample of its class that is not, or, if it is not, to the worst that is (negative
            then; None if there is no such sample). ``factors`` lists the factors active in it, the strongest first:
            ``factor``, ``activation``, ``rate`` (the share of samples in which it is active), in how many ``classes``
            it is, whether it is ``common``, and what it adds to the two scores before these are normalised. It is None
            for a selector made from scores.

        Raises:
            TypeError, IndexError: ``i`` is not an int in [0, N).

        Example:
            >>> selector = DynamicSelector.from_scores(torch.tensor([0.9, 0.1]), torch.tensor([0.0, 0.1]), 0.5, 10)
            >>> why = selector.explain(0)
            >>> why["taken"], why["representativeness_rank"]
            (True, 1)
        """
        i = self._sample(i)
        epoch = max(self._epoch, 0)
        uses = self._before(epoch)
        scores = self._scored(epoch, uses)
        base = self._scored(epoch, torch.zeros_like(uses))
        taken = torch.zeros_like(scores, dtype=torch.bool)
        taken[self.select(epoch)] = True
        rivals = taken != taken[i]
        if self._strata.groups is not None:
            rivals &= self._strata.groups == self._strata.groups[i]
        margin = None
        if bool(rivals.any()):
            others = scores[rivals]
            margin = float(scores[i] - (others.max() if taken[i] else others.min()))
        label = None if self._classes is None else int(self._classes.labels[int(self._classes.ids[i])])
        return {
            "sample": i,
            "epoch": epoch,
            "label": label,
            "representativeness": float(self.representativeness[i]),
            "representativeness_rank": 1 + int((self.representativeness > self.representativeness[i]).sum()),
            "diversity": float(self.diversity[i]),
            "diversity_rank": 1 + int((self.diversity > self.diversity[i]).sum()),
            "weight": self.weight(epoch),
            "uses": int(uses[i]),
            "penalty": float(base[i] - scores[i]),
            "score": float(scores[i]),
            "taken": bool(taken[i]),
            "margin": margin,
            "factors": self._factors_of(i),
        }

    @torch.no_grad()
    def _factors_of(self, i: int) -> list[dict[str, Any]] | None:
        if self.sae is None or self.factors is None or self._rows is None:
            return None
        values, indices = self.sae.encode(self._rows.take(torch.tensor([i], device="cpu")).to(self.sae.bias.device))
        found = []
        for activation, j in zip(values[0].tolist(), indices[0].tolist(), strict=True):
            if activation > 0:
                count, classes = int(self.factors.counts[j]), float(self.factors.classes[j])
                common = bool(self.factors.common[j])
                found.append(
                    {
                        "factor": j,
                        "activation": activation,
                        "rate": count / self.num_samples,
                        "classes": classes,
                        "common": common,
                        "representativeness": 1 / classes if common else 0.0,
                        "diversity": 1 / count,
                    }
                )
        return sorted(found, key=lambda factor: -factor["activation"])

    def stats(self) -> dict[str, Any]:
        """How evenly samples have been used so far, the epoch selected last included.

        Returns:
            ``epochs`` so far; ``realised_ratio``, samples seen over those that full data would have taken; ``uses``,
            how many samples were used 0, 1, 2, ... times; ``imbalance``, the standard deviation of a sample's share of
            epochs over its mean: 0 where selection leaves the gradient unbiased in the long run (the paper's bias
            argument); and for a selector made from features ``coverage``: which share of a factor's samples the subset
            holds, averaged over the ``rare`` quarter of the live factors and over the ``common`` one.

        Example:
            >>> selector = DynamicSelector.from_scores(torch.rand(10), torch.rand(10), 0.5, 10, key=0)
            >>> subset = selector.select(0)
            >>> selector.stats()
            {'epochs': 1, 'realised_ratio': 0.5, 'uses': [5, 5], 'imbalance': 1.0}
        """
        epochs, uses = self._epoch + 1, self.uses
        mean = float(uses.double().mean())
        result = {
            "epochs": epochs,
            "realised_ratio": mean / max(epochs, 1),
            "uses": torch.bincount(uses).tolist(),
            "imbalance": float(uses.double().std(correction=0)) / mean if mean else 0.0,
        }
        if self.sae is not None and epochs:
            result["coverage"] = self._coverage()
        return result

    @torch.no_grad()
    def _coverage(self) -> dict[str, float]:
        assert self.sae is not None and self.factors is not None and self._rows is not None
        device, counts = self.sae.bias.device, self.factors.counts
        held = torch.zeros_like(counts)
        for part in self.select(self._epoch).split(8192):
            values, indices = self.sae.encode(self._rows.take(part.cpu()).to(device))
            held += ops.factor_counts(values, indices, self.sae.num_factors)
        live = torch.nonzero(counts).flatten()
        by_count = live[counts[live].argsort(stable=True)]
        quarter = max(1, by_count.numel() // 4)
        share = held.double() / counts.clamp_min(1)
        return {"rare": float(share[by_count[:quarter]].mean()), "common": float(share[by_count[-quarter:]].mean())}

    # --- state ---

    def _state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "key": self._key.clone()}

    @classmethod
    def _restore(cls, tables: dict[str, Tensor], arguments: dict[str, Any], state: dict[str, Any]) -> Self:
        if "labels" in tables:
            tables["labels"] = tables.pop("classes")[tables["labels"].long()]
        # the tables are scaled already, and doing it again need not give the same: ranks of 2^24 samples round
        selector = super()._restore(tables, {**arguments, "normalise": None}, state)
        selector._arguments["normalise"] = arguments["normalise"]
        return selector

    def _load_state(self, state: dict[str, Any]) -> None:
        epoch = _checks.in_range(type(self).__name__, "state_dict['epoch']", state["epoch"], -1)
        before = dict(self.__dict__)
        try:
            self._set_key(state["key"])
            if epoch >= 0:
                self.select(epoch)
        except BaseException:  # a schedule that fails, an interrupt
            self.__dict__.update(before)
            raise
