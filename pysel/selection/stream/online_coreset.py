"""OCS: of each batch of a stream, the samples whose gradients are typical, unlike each other and like the memory's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.selection.state import lasting
from pysel.selection.stream.remembering import Remembering, errors

_FLOOR = 1e-6  # of a length that is divided by


class OnlineCoreset(Remembering):
    """Picks the samples of each call to train on, and holds a class-balanced memory of the best of them.

    With g_i the gradient of sample i, of a call or of what is held, and r the mean gradient of what was held at the
    last `refresh`::

        own_i  = cos(mean_j g_j, g_i) - mean_j cos(g_j, g_i)        typical, and unlike the others
        rank_i = own_i + tau cos(r, g_i)                            nothing of it before the first refresh

    The ``batch_size`` samples of the largest rank are picked. They come into the memory by their ``own``, in which
    every class has as many places as the others, and `refresh`, at the end of a task, judges all that is held anew, by
    the network as it is then::

        picked = selector.offer(logits, y, features=h, indices=index)  # train on these and on selector.replay(10)
        ...
        selector.refresh(*outputs_of(selector.indices))  # at the end of a task: logits, features=h

    Gradients are those of the last layer, the outer product of the error, softmax minus one-hot, and of the features
    that the layer sees: nothing is differentiated, and a call costs O(B C d). (Where the layer has a bias, a feature
    that is always 1 stands for it.)

    Ours: the last layer instead of the whole network. The memory is filled by ``own`` as in the paper; its released
    code fills it at random within classes. The random picks at the beginning of each task are left out. On five tasks
    of Fashion-MNIST a `pysel.selection.stream.ReplayMemory` of any samples was 14 points better (docs/science.md):
    compare before you use it.

    Args:
        num_classes: C, the logits' width.
        num_features: d, the features' width.
        capacity: samples to hold at most.
        batch_size: picks of a call.
        tau: weight of likeness to what is held; the paper's is 1000, at which the rest only orders equals.
        draw: "uniform", or "uses" for 1 over the uses so far, see `pysel.selection.stream.ReplayMemory`.
        key: int64 [2] or an int, for the draws; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> selector = OnlineCoreset(num_classes=2, num_features=1, capacity=4, batch_size=2, key=0)
        >>> logits = [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
        >>> selector.offer(logits, labels=[0, 0, 1], features=[[1.0], [1.0], [1.0]])
        tensor([ True,  True, False])
        >>> selector.indices
        tensor([0, 1])

    Source: Yoon et al., arXiv 2106.01085.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        capacity: int,
        *,
        batch_size: int = 10,
        tau: float = 1000.0,
        draw: str = "uniform",
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        self.num_features = _checks.in_range(name, "num_features", num_features, 1)
        self.batch_size = _checks.in_range(name, "batch_size", batch_size, 1)
        self.tau = _checks.within(name, "tau", tau, "[0, inf)")
        arguments = {"num_features": self.num_features, "batch_size": self.batch_size, "tau": self.tau}
        super().__init__(num_classes, capacity, arguments, keep="balanced", draw=draw, key=key)
        with torch.inference_mode(False):
            shape = self.num_classes, self.num_features
            # r up to its length; zeros before it is known
            self._reference = torch.zeros(shape, dtype=torch.float32, device="cpu")

    @lasting
    def offer(self, logits: Any, labels: Any, *, features: Any = None, indices: Any = None) -> Tensor:
        """Pick from samples as they arrive.

        Args:
            logits: [B, C] the network's outputs for them.
            labels: integers [B] in [0, C).
            features: [B, d] what the last layer made the logits from.
            indices: integers [B], 0 or more, distinct, to call them by; default: their numbers in the stream. One that
                is held already may be picked, and is held once.

        Returns:
            bool [B], where the logits are: which to train on, the ``batch_size`` best or all, if there are fewer.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: no features, an argument of the wrong shape, a number that is not finite, a label or an index
                out of range, or an index that comes twice. Nothing has changed then.
        """
        logits, labels, indices, _ = self._arrivals(logits, labels, indices)
        features = self._features("offer", features, logits)
        own, alike = _ranks(errors(logits, labels), features, self._reference)
        picks = ops.select(own + self.tau * alike, min(self.batch_size, len(own)))
        here = picks.cpu()
        self.memory.add(indices[here], labels[picks], ranks=own[picks])
        self._offered += len(own)
        self._accepted += len(picks)
        return torch.zeros_like(labels, dtype=torch.bool).index_fill_(0, picks, True)

    def _features(self, method: str, features: Any, logits: Tensor) -> Tensor:
        op = f"{type(self).__name__}.{method}"
        if features is None:
            raise ValueError(f"{op}: features must be given")
        features = _inputs.tensor(op, "features", features).to(logits)
        if features.shape != (len(logits), self.num_features):
            raise ValueError(f"{op}: features must be [{len(logits)}, {self.num_features}], got {list(features.shape)}")
        _inputs.finite(op, "features", features)
        if len(features):  # cosines do not know the scale, and lengths of any fit then
            largest = torch.stack(features.aminmax()).abs().amax()
            if not 1 <= float(largest) < 2.0**20:
                features = features / largest.clamp_min(torch.finfo(features.dtype).tiny)
        return features

    @lasting
    def refresh(self, logits: Any = None, *, features: Any = None) -> None:
        """Judge what is held by the network as it is: new ranks in the memory, and the gradient to be like from now on.

        Args:
            logits: [len(self), C] the network's outputs for the samples held, in the order of ``indices``.
            features: [len(self), d] what the last layer made them from.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: nothing is held, an argument is missing or of the wrong shape, or a number is not finite.
                Nothing has changed then.
        """
        op = f"{type(self).__name__}.refresh"
        if len(self) == 0:
            raise ValueError(f"{op}: nothing is held yet: call offer() first")
        if logits is None:
            raise ValueError(f"{op}: logits must be given")
        logits = self._logits(op, logits, len(self))
        features = self._features("refresh", features, logits)
        error = errors(logits, self.labels.to(logits.device))
        own, reference = _ranks(error, features, self._reference)[0], _mean_gradient(error, features)
        self.memory.rerank(own)
        self._reference = reference.to(self._reference)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "reference": self._reference.clone()}

    def _load_state(self, state: dict[str, Any]) -> None:
        _inputs.finite(type(self).__name__, "state_dict['reference']", state["reference"])
        super()._load_state(state)
        self._reference = state["reference"]


def _ranks(error: Tensor, features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """``own`` [B], and the cosine [B] with the reference [C, d], of the gradients ``error_i`` outer ``feature_i``."""
    length = torch.linalg.vector_norm(error, dim=1) * torch.linalg.vector_norm(features, dim=1)
    unit = error / length.clamp_min(_FLOOR)[:, None]  # outer features: gradients of length 1
    means = _mean_gradient(torch.cat([error, unit], 1), features)
    mean, typical = means[: error.size(1)], means[error.size(1) :]
    reference = reference.to(error)

    def along(direction: Tensor) -> Tensor:
        with torch.autocast(unit.device.type, enabled=False):
            return (features @ direction.T).mul_(unit).sum(1)

    return along(mean / _length(mean) - typical), along(reference / _length(reference))


def _mean_gradient(error: Tensor, features: Tensor) -> Tensor:
    """[C, d]: of ``error_i`` outer ``feature_i``."""
    with torch.autocast(error.device.type, enabled=False):
        return error.T @ features / max(len(error), 1)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x).clamp_min(_FLOOR)
