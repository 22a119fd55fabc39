"""One subset for all of training: everything, a random part, or the samples of largest score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.random import as_key
from pysel.selection.protocol import Selector
from pysel.selection.state import lasting
from pysel.selection.subset import Strata, subset_size

if TYPE_CHECKING:
    from typing_extensions import Self


class FixedSelector(Selector):
    """The same subset in every epoch: the base of all static selectors.

    Args:
        indices: integers [k], tensor, array or list, each once; they need not be sorted.
        num_samples: N, of which they are; default: just enough.
        arguments: of a derived class: what its constructor was given, see `Selector`. ``load`` does not call that
            constructor again.

    Raises:
        TypeError: ``indices`` are not integers (a boolean mask is none).
        ValueError: an index comes twice or is out of range.

    Example:
        >>> FixedSelector([5, 2]).select(7)
        tensor([2, 5])
    """

    def __init__(
        self, indices: Any, num_samples: int | None = None, *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        name = type(self).__name__
        if num_samples is not None:
            num_samples = _checks.in_range(name, "num_samples", num_samples, 0)
        indices = _inputs.indices(name, "indices", indices, 2**63 if num_samples is None else num_samples)
        self._take(indices)
        if num_samples is None:
            num_samples = int(self._indices[-1]) + 1 if len(indices) else 0
        super().__init__(num_samples, {"num_samples": num_samples, **(arguments or {})})

    def __len__(self) -> int:
        """Samples in each epoch's subset."""
        return self._indices.numel()

    def size(self, epoch: int) -> int:
        """Samples in each epoch's subset."""
        return len(self)

    @lasting
    def select(self, epoch: int = 0) -> Tensor:
        """int64 [len(self)] ascending indices, whatever the epoch."""
        _checks.in_range(type(self).__name__, "epoch", epoch, 0)
        return self._indices.clone()

    def _take(self, indices: Tensor) -> None:
        self._indices = indices.sort().values
        self._saved: Tensor | None = None

    def _state(self) -> dict[str, Any]:
        if self._saved is None:
            self._saved = self._indices.clone()  # one for all states: loaders take one with each batch
        return {"indices": self._saved}

    def _load_state(self, state: dict[str, Any]) -> None:
        name = "state_dict['indices']"
        self._take(_inputs.indices(type(self).__name__, name, state["indices"], self.num_samples))

    @classmethod
    def _restore(cls, tables: dict[str, Tensor], arguments: dict[str, Any], state: dict[str, Any]) -> Self:
        # the subset is in the state: what it was chosen by is not needed again
        selector = cls.__new__(cls)
        num_samples = arguments.pop("num_samples")
        FixedSelector.__init__(selector, state["indices"], num_samples, arguments=arguments)
        return selector


class Full(FixedSelector):
    """All of the data, every epoch.

    Example:
        >>> Full(3).select(0)
        tensor([0, 1, 2])
    """

    def __init__(self, num_samples: int) -> None:
        num_samples = _checks.in_range(type(self).__name__, "num_samples", num_samples, 0)
        super().__init__(torch.arange(num_samples, device="cpu"), num_samples)


class StaticRandom(FixedSelector):
    """One random subset, kept throughout.

    Args:
        num_samples: N.
        keep_ratio: fraction kept.
        labels: integers [N]: each class keeps its share.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or more classes than samples kept.

    Example:
        >>> import pysel
        >>> StaticRandom(10, 0.25, key=pysel.key(0)).select(0).shape
        torch.Size([3])
    """

    def __init__(
        self, num_samples: int, keep_ratio: float, *, labels: Any = None, key: Tensor | int | None = None
    ) -> None:
        name = type(self).__name__
        size = subset_size(keep_ratio, num_samples, op=name)
        strata = Strata(num_samples, size, labels, device="cpu", op=name, name="keep_ratio")
        equal = torch.zeros(_checks.integer(name, "num_samples", num_samples), dtype=torch.float32, device="cpu")
        chosen = strata.sample(equal, as_key(name, key))
        super().__init__(chosen, num_samples, arguments={"keep_ratio": keep_ratio})


class ScoreSelector(FixedSelector):
    """The samples with the largest (or smallest) scores, throughout.

    Args:
        scores: [N] numbers, no NaN.
        keep_ratio: fraction kept.
        largest: False keeps the smallest.
        labels: integers [N]: each class keeps its share.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a score is NaN, an argument out of range, or more classes than samples kept.

    Example:
        >>> ScoreSelector([0.1, 0.9, 0.5], 0.5).select(0)
        tensor([1, 2])
    """

    def __init__(self, scores: Any, keep_ratio: float, *, largest: bool = True, labels: Any = None) -> None:
        name = type(self).__name__
        scores = _inputs.vector(name, "scores", scores, may_be_infinite=True)
        n = len(scores)
        size = subset_size(keep_ratio, n, op=name)
        strata = Strata(n, size, labels, device=scores.device, op=name, name="keep_ratio")
        arguments = {"keep_ratio": keep_ratio, "largest": bool(largest)}
        super().__init__(strata.best(scores if largest else -scores), n, arguments=arguments)


def _probabilities(op: str, logits: Any, labels: Any, *, or_predicted: bool = False) -> tuple[Tensor, Tensor]:
    """softmax(logits) [N, C], float32 or float64, and labels int64 [N]; those predicted may stand for no labels."""
    logits = _inputs.tensor(op, "logits", logits)
    if logits.dim() != 2 or logits.numel() == 0:
        raise ValueError(f"{op}: logits must be [N, C], neither of them 0, got {list(logits.shape)}")
    if labels is not None or not or_predicted:
        labels = _inputs.integers(op, "labels", labels, len(logits)).to(logits.device, torch.int64)
        outside = (labels < 0) | (labels >= logits.size(1))
        if bool(outside.any()):
            row = int(torch.nonzero(outside)[0])
            raise ValueError(
                f"{op}: labels must be between 0 and {logits.size(1) - 1}, got {int(labels[row])} in row {row}"
            )
    p = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), 1)
    _inputs.finite(op, "softmax(logits)", p)
    return p, p.argmax(1) if labels is None else labels


def _error(p: Tensor, labels: Tensor) -> Tensor:
    """``||p - onehot(labels)||_2``."""
    # 1 - p as the sum of the others: subtracting would lose all digits of a confident prediction
    others = p.scatter(1, labels[:, None], 0).sum(1, keepdim=True)
    return torch.linalg.vector_norm(p.scatter(1, labels[:, None], others), dim=1)


def el2n(logits: Any, labels: Any) -> Tensor:
    """EL2N, the length of the error vector: ``||softmax(logits) - onehot(labels)||_2`` (Paul et al.,
    2107.07075).

    Average it over several networks after a few epochs, then keep the largest with `ScoreSelector`.

    Args:
        logits: [N, C] of any float dtype, tensor or array; -inf where a class is ruled out.
        labels: integers [N] in [0, C).

    Returns:
        [N], float32 or float64 like the logits, from 0 to sqrt(2).

    Raises:
        TypeError: logits that are not numbers, labels that are not integers.
        ValueError: shapes that do not match, a label out of range, or a row of logits that has no softmax.

    Example:
        >>> el2n([[9.0, -9.0], [0.0, 0.0]], [0, 1])
        tensor([2.1538e-08, 7.0711e-01], dtype=torch.float64)
    """
    return _error(*_probabilities("el2n", logits, labels))


def grand(logits: Any, labels: Any, features: Any) -> Tensor:
    """GraNd of the last layer: the length of a sample's gradient of the cross-entropy in that layer's weights and bias.

    The gradient is the outer product of the error vector and ``(features, 1)``, so that its length is
    ``||softmax(logits) - onehot(labels)||_2 * sqrt(||features||_2^2 + 1)``: no backward pass is needed. The paper has
    the gradient in all weights, and EL2N for its approximation; this one lies between. Average it over several networks
    after a few epochs, then keep the largest with `ScoreSelector`.

    Args:
        logits: [N, C] of any float dtype, tensor or array; -inf where a class is ruled out.
        labels: integers [N] in [0, C).
        features: [N, ...] what the last layer is given, see `pysel.selection.features.penultimate`.

    Returns:
        [N], float32 or float64 like the logits, at least 0.

    Raises:
        TypeError: logits or features that are not numbers, labels that are not integers.
        ValueError: shapes that do not match, a label out of range, a row of logits that has no softmax, or features
            that are not finite.

    Example:
        >>> grand([[0.0, 0.0], [0.0, 0.0]], [0, 1], [[0.0, 0.0], [2.0, 2.0]])
        tensor([0.7071, 2.1213], dtype=torch.float64)

    Source: Paul et al., arXiv 2107.07075.
    """
    p, labels = _probabilities("grand", logits, labels)
    x = _inputs.matrix("grand", "features", features)
    if len(x) != len(p):
        raise ValueError(f"grand: features must be [N, ...] with N={len(p)}, got {list(x.shape)}")
    length = torch.linalg.vector_norm(x.to(p.device), dim=1, dtype=torch.float64)
    return (_error(p, labels) * length.hypot(torch.ones_like(length))).to(p.dtype)


def margin(logits: Any, labels: Any = None) -> Tensor:
    """By how much the label's probability exceeds the largest other one.

    Without labels, the gap between the two largest, as in active learning: the margin of the class that is predicted.
    The smallest are the samples nearest to the decision boundary; with labels, negative ones lie beyond it, be they
    hard or labelled wrongly. `AUM` is the same of logits, over a training.

    Args:
        logits: [N, C] of any float dtype, tensor or array, C > 1; -inf where a class is ruled out.
        labels: integers [N] in [0, C).

    Returns:
        [N], float32 or float64 like the logits, from -1 to 1.

    Raises:
        TypeError: logits that are not numbers, labels that are not integers.
        ValueError: shapes that do not match, a single class, a label out of range, or a row of logits that has no
            softmax.

    Example:
        >>> margin([[0.0, 0.0], [2.0, 0.0]], [0, 1])
        tensor([ 0.0000, -0.7616], dtype=torch.float64)
        >>> margin([[0.0, 0.0], [2.0, 0.0]])
        tensor([0.0000, 0.7616], dtype=torch.float64)

    Source: Scheffer et al., Active Hidden Markov Models for Information Extraction, 2001.
    """
    p, labels = _probabilities("margin", logits, labels, or_predicted=True)
    if p.size(1) == 1:
        raise ValueError(f"margin: logits must be [N, C] with C > 1, got {list(p.shape)}")
    others = p.scatter(1, labels[:, None], -1.0).amax(1)
    return p.gather(1, labels[:, None]).squeeze(1) - others
