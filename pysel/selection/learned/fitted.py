"""What a selector that has learned a logit for every sample offers, however it has learned them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pysel import _checks, _inputs, ops
from pysel.nn import GumbelSelector
from pysel.random import as_key, fold_in
from pysel.selection.learned.batches import Batch, Tensors
from pysel.selection.learned.gate import budgeted, perceptron, with_label
from pysel.selection.learned.importance import Importances, importances
from pysel.selection.learned.pool import Tried, best_pool, part_of_pool
from pysel.selection.learned.settings import Settings
from pysel.selection.learned.trial import evaluating
from pysel.selection.protocol import Selector
from pysel.selection.state import lasting
from pysel.selection.subset import Strata, subset_size

if TYPE_CHECKING:
    from typing_extensions import Self


class LearnedSelector(Selector):
    """The subset of the largest logits, which come from a table or a network that has been trained.

    Args:
        settings: the arguments of the training.
        selector: "table", "network" or a network.
        hidden: width of the perceptron that "network" means.
        see_labels: whether networks see labels beside the inputs.
        key: int64 [2].
    """

    def __init__(
        self, settings: Settings, selector: str | nn.Module, hidden: int, see_labels: bool, key: Tensor
    ) -> None:
        kind = selector if isinstance(selector, str) else "module"
        super().__init__(0, {**vars(settings), "selector": kind, "hidden": hidden, "see_labels": see_labels})
        self.settings = settings
        self._selector, self._hidden, self._see_labels, self._key = selector, hidden, see_labels, key
        self._width, self._classes = 0, 0  # what a network sees: numbers a sample, and classes of labels
        self._gate: GumbelSelector | None = None  # the network
        self._groups: Tensor | None = None  # int32 [N], the stratum of each sample
        self._tried: list[Tried] = []  # with pool="auto", once fitted
        self._logits = self._losses = torch.empty(0, dtype=torch.float32, device="cpu")
        self._subset = torch.empty(0, dtype=torch.int64, device="cpu")

    def _network(self, inputs: int) -> GumbelSelector:
        """The selector network: that of the user, as it is now, or a fresh perceptron."""
        if isinstance(self._selector, nn.Module):
            return GumbelSelector(network=self._selector)
        return GumbelSelector(
            network=nn.Sequential(nn.Flatten(), perceptron((inputs, self._hidden), key=fold_in(self._key, 5)))
        )

    def _seen(self, batch: Batch) -> Tensor:
        return with_label(batch.seen, batch.y, self._classes) if self._see_labels else batch.seen

    def _fitted(self) -> Self:
        if self._subset.numel() == 0:
            raise RuntimeError("ASSS: call fit first")
        return self

    @property
    def tried(self) -> list[Tried]:
        """With ``pool="auto"``: each pool that was tried, with what came of it."""
        return list(self._fitted()._tried)

    @property
    def pool(self) -> float:
        """The share of the samples that the subset is a random part of, once fitted; ``keep_ratio`` without a pool."""
        return float(self._fitted()._share)

    @property
    def _share(self) -> Any:
        return best_pool(self._tried) if isinstance(self.settings.pool, str) else self.settings.target

    def _pool(self) -> Tensor:
        """The samples that the subset is drawn from: int64, ascending. Without ``pool`` that is the subset."""
        n = self._logits.numel()
        groups = self._groups if self.settings.pool is None else None
        strata = Strata(n, subset_size(self._share, n), groups, device=self._logits.device)
        # Logits rank as probabilities do, and do not tie where those have rounded to 1.
        return strata.best(self._logits, key=fold_in(self._key, 2))

    def _choose(self) -> Tensor:
        """The subset: the pool, or a random part of it."""
        pool, n = self._pool(), self._logits.numel()
        if self.settings.pool is None:
            return pool
        even = torch.zeros(n, dtype=torch.float64, device=self._logits.device)
        chance = ops.gumbel_sigmoid(even, key=fold_in(self._key, 6))  # uniform
        ratio, tie_key = self.settings.keep_ratio, fold_in(self._key, 2)
        return part_of_pool(self._logits, pool, ratio, self._groups, chance, key=tie_key)

    @property
    def probabilities(self) -> Tensor:
        """[N] chance of each sample to be used, once fitted: its importance.

        They can be drawn by: ``pysel.WeightedSampler(selector.probabilities, 1000, replacement=False)``.
        """
        logits = self._fitted()._logits
        if self.settings.gate == "khot":  # only differences of their logits mean anything
            return budgeted(logits, len(self._pool())).to(logits.dtype)
        return torch.sigmoid(logits)

    def __len__(self) -> int:
        """Samples in the subset."""
        return self._fitted()._subset.numel()

    def size(self, epoch: int) -> int:
        """Samples in each epoch's subset."""
        return len(self)

    @lasting
    def select(self, epoch: int = 0) -> Tensor:
        """The subset, int64 ascending indices; the same in every epoch.

        Raises:
            RuntimeError: before ``fit``.
        """
        _checks.in_range("ASSS", "epoch", epoch, 0)
        return self._fitted()._subset.clone()

    @torch.no_grad()
    def score(self, x: Any, y: Any = None, *, batch_size: int = 4096) -> Tensor:
        """Logits of samples that need not be among those fitted on, from the selector network.

        Args:
            x: [M, ...] what the network sees.
            y: [M, ...] their labels, with ``see_labels``.
            batch_size: rows at a time.

        Returns:
            [M]; `torch.sigmoid` makes probabilities of them.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: with a table, which knows its own samples only; or labels are missing.
        """
        gate = self._fitted()._gate
        if gate is None:
            raise ValueError("ASSS: selector must be a network for score: a table knows no samples but its own")
        if self._see_labels and y is None:
            raise ValueError("ASSS: y must be given to score, as see_labels=True, got None")
        data = Tensors(
            x, torch.zeros(len(x), dtype=torch.float32, device="cpu") if y is None else y, None, batch_size, self._key
        )
        device = next(gate.parameters()).device
        with evaluating(gate):
            return torch.cat([gate.logits(self._seen(batch.to(device))) for batch in data.all()])

    def importances(self) -> Importances:
        """What is known of every sample: logit, probability, rank, loss, margin to the cut, stratum, selected."""
        logits, losses = self._fitted()._logits.clone(), self._losses.clone()
        return importances(
            logits, self.probabilities, losses, self._pool(), self._subset, self._groups, self.settings.pool is None
        )

    def explain(self, i: int) -> dict[str, Any]:
        """Why a sample is in the subset, or why not.

        Args:
            i: index of the sample.

        Returns:
            a dictionary of its row of ``importances``, with its number as ``sample``. ``margin`` is how far its logit
            is above that of the best that is out of the pool (without ``pool``, of its stratum's that is out of the
            subset) or, if it is out itself, below that of the worst that is in (negative then).

        Raises:
            IndexError: no such sample.
        """
        table = self.importances()
        _checks.integer("ASSS", "i", i)
        if not 0 <= i < self.num_samples:
            raise IndexError(f"ASSS: i must be between 0 and {self.num_samples - 1}, got {i}")
        return {"sample": int(i), **{name: column[i].item() for name, column in table._asdict().items()}}

    # --- state ---

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"ASSS({given})" if not self.num_samples else f"ASSS({given}) of {self.num_samples} samples"

    def _state(self) -> dict[str, Any]:
        network = self._subset.new_empty(0, dtype=torch.float64)
        if self._gate is not None:
            network = torch.cat([value.detach().double().flatten() for value in self._gate.state_dict().values()])
        groups = self._groups
        return {
            "key": self._key.clone(),
            "logits": self._logits.clone(),
            "losses": self._losses.clone(),
            "subset": self._subset.clone(),
            "strata": self._subset.new_empty(0, dtype=torch.int32) if groups is None else groups.clone(),
            "network": network,
            "width": self._width,
            "classes": self._classes,
            "tried": [list(astuple(one)) for one in self._tried],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what was fitted or, from a state taken while ``fit`` ran, go on with that in the next ``fit``.

        Raises:
            TypeError: it is no dictionary, or an entry has the wrong type.
            ValueError: entries are missing, do not fit each other, or belong to other arguments. Nothing has changed
                then.
        """
        self._check_origin(state_dict, self._state())
        with torch.inference_mode(False):
            self._load_state(dict(state_dict))

    def _load_state(self, state: dict[str, Any]) -> None:
        key = as_key("ASSS", state["key"])
        n = _inputs.tensor("ASSS", "state_dict['logits']", state["logits"]).numel()
        loaded: dict[str, Tensor] = {}
        dtypes = {"logits": torch.float32, "losses": torch.float32, "subset": torch.int64, "strata": torch.int32}
        for name, dtype in {**dtypes, "network": torch.float64}.items():
            value = state[name]
            _checks.tensor("ASSS", f"state_dict[{name!r}]", value, (dtype,))
            if name in dtypes and name != "subset" and value.numel() not in {n} | ({0} if name == "strata" else set()):
                raise ValueError(f"ASSS: state_dict[{name!r}] must have {n} entries like logits, got {value.numel()}")
            loaded[name] = value.detach().clone()
        _inputs.indices("ASSS", "state_dict['subset']", loaded["subset"], n)
        width, classes = (_checks.in_range("ASSS", f"state_dict[{k!r}]", state[k], 0) for k in ("width", "classes"))
        tried = [Tried(*(_checks.number("ASSS", "state_dict['tried']", v) for v in one)) for one in state["tried"]]
        gate = self._filled(loaded["network"], width) if loaded["network"].numel() else None
        self._key, self._gate, self._tried = key, gate, tried
        self._groups = loaded["strata"] if loaded["strata"].numel() else None
        self._logits, self._losses, self._subset = loaded["logits"], loaded["losses"], loaded["subset"]
        self.num_samples, self._width, self._classes = n, width, classes

    def _filled(self, values: Tensor, width: int) -> GumbelSelector:
        """The selector network with the numbers of a state."""
        gate = self._network(width).to(values.device)
        own = gate.state_dict()
        sizes = [value.numel() for value in own.values()]
        if sum(sizes) != values.numel():
            raise ValueError(
                f"ASSS: state_dict must be of a selector network of {sum(sizes)} numbers, got {values.numel()}"
            )
        parts = zip(own.items(), values.split(sizes), strict=True)
        gate.load_state_dict({name: part.view_as(value).to(value.dtype) for (name, value), part in parts})
        return gate

    def save(self, path: str | Path) -> None:
        """Write arguments, subset, logits and selector network into a folder, once fitted.

        Raises:
            RuntimeError: before ``fit``, or in the middle of it: ``torch.save(selector.state_dict(), ...)`` keeps that.
            ValueError: an argument is a function, or the selector a network of yours; nothing has been written.
        """
        self._fitted()
        if isinstance(self._selector, nn.Module):
            raise ValueError(
                f"ASSS: selector must be 'table' or 'network' to be saved, got a {type(self._selector).__name__}: "
                "keep its state_dict"
            )
        super().save(path)
