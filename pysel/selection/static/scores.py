"""One subset for all of training: everything, a random part, or the samples of largest score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks
from pysel.random import as_key
from pysel.selection.protocol import Selector
from pysel.selection.subset import Strata, subset_size


class FixedSelector(Selector):
    """The same subset in every epoch: the base of all static selectors.

    Args:
        indices: int64 [k] ascending.
        num_samples: N, of which they are; default: just enough.

    Example:
        >>> FixedSelector(torch.tensor([2, 5])).select(7)
        tensor([2, 5])
    """

    def __init__(self, indices: Tensor, num_samples: int | None = None) -> None:
        _checks.tensor(type(self).__name__, "indices", indices, (torch.int64,))
        if num_samples is None:
            num_samples = int(indices.max()) + 1 if indices.numel() else 0
        super().__init__(num_samples, {})
        self._indices = indices

    def __len__(self) -> int:
        """Samples in each epoch's subset."""
        return self._indices.numel()

    def select(self, epoch: int = 0) -> Tensor:
        """int64 [len(self)] ascending indices, whatever the epoch."""
        return self._indices.clone()

    def _state(self) -> dict[str, Any]:
        return {"indices": self._indices.clone()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._indices = state["indices"].clone()


class Full(FixedSelector):
    """All of the data, every epoch.

    Example:
        >>> Full(3).select(0)
        tensor([0, 1, 2])
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__(torch.arange(num_samples), num_samples)


class StaticRandom(FixedSelector):
    """One random subset, kept throughout.

    Args:
        num_samples: N.
        keep_ratio: fraction kept.
        labels: integers [N]: each class keeps its share.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Example:
        >>> import pysel
        >>> StaticRandom(10, 0.25, key=pysel.key(0)).select(0).shape
        torch.Size([3])
    """

    def __init__(
        self, num_samples: int, keep_ratio: float, *, labels: Tensor | None = None, key: Tensor | int | None = None
    ) -> None:
        strata = Strata(num_samples, subset_size(keep_ratio, num_samples), labels)
        super().__init__(strata.sample(torch.zeros(num_samples), as_key("StaticRandom", key)), num_samples)


class ScoreSelector(FixedSelector):
    """The samples with the largest (or smallest) scores, throughout.

    Args:
        scores: [N] floating point, no NaN.
        keep_ratio: fraction kept.
        largest: False keeps the smallest.
        labels: integers [N]: each class keeps its share.

    Example:
        >>> ScoreSelector(torch.tensor([0.1, 0.9, 0.5]), 0.5).select(0)
        tensor([1, 2])
    """

    def __init__(
        self, scores: Tensor, keep_ratio: float, *, largest: bool = True, labels: Tensor | None = None
    ) -> None:
        strata = Strata(scores.numel(), subset_size(keep_ratio, scores.numel()), labels, device=scores.device)
        super().__init__(strata.best(scores if largest else -scores), scores.numel())


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N, the length of the error vector: ``||softmax(logits) - onehot(labels)||_2`` (Paul et al.,
    2107.07075).

    Average it over several networks after a few epochs, then keep the largest with `ScoreSelector`.

    Args:
        logits: [N, C].
        labels: int64 [N].

    Returns:
        [N], from 0 to sqrt(2).

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> el2n(torch.tensor([[9.0, -9.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        tensor([2.1538e-08, 7.0711e-01])
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"el2n: labels must be [N] for logits [N, C], got {list(labels.shape)}, {list(logits.shape)}")
    error = torch.softmax(logits, 1)
    # 1 - p as the sum of the others: subtracting would lose all digits of a confident prediction
    others = error.scatter(1, labels[:, None], 0).sum(1, keepdim=True)
    return torch.linalg.vector_norm(error.scatter(1, labels[:, None], others), dim=1)
