"""Scores of samples from losses that have no value for each of them, as contrastive and set losses have none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.selection.dynamic.losses import averaged
from pysel.selection.state import lasting, like


class BatchLossScores:
    """An exponential average, for each sample, of the losses of the batches that it was in.

    After a batch of loss L each of its samples has ``score <- decay * score + (1 - decay) * L``. Over epochs batches
    are mixed anew, so that samples which raise their batch's loss come to have larger scores. They take the place of
    losses for `InfoBatch`, `SeTa`, `OrderDP` and all that go by losses; a batch as a whole weighs what its samples do
    on average::

        loss = criterion(model(x))  # one number
        (loss * selector.weights(indices).mean()).backward()
        selector.update(indices, losses=scores.update(indices, loss))

    Ours: the first loss is the score, instead of being averaged with a made-up one.

    Args:
        num_samples: N.
        decay: weight of the old score, in [0, 1).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> scores = BatchLossScores(4, decay=0.5)
        >>> scores.update([0, 1], 2.0), scores.update([1, 2], torch.tensor(1.0))
        (tensor([2., 2.]), tensor([1.5000, 1.0000]))

    Source: Zhou et al., arXiv 2604.04681.
    """

    def __init__(self, num_samples: int, decay: float = 0.9) -> None:
        name = type(self).__name__
        self.num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        self.decay = _checks.within(name, "decay", decay, "[0, 1)")
        with torch.inference_mode(False):
            # NaN: none yet
            self._scores = torch.full((self.num_samples,), math.nan, dtype=torch.float32, device="cpu")

    @lasting
    def update(self, indices: Any, loss: Any) -> Tensor:
        """Take over the loss of a batch.

        Args:
            indices: integers [B], the batch's samples, each once.
            loss: one number, also a tensor of one with a graph.

        Returns:
            float32 [B], on the CPU: the new scores of these samples.

        Raises:
            TypeError: indices that are not integers, or a loss that is no number.
            ValueError: an index that is out of range or comes twice, or a loss that is not finite (in float32). Nothing
                has changed then.
        """
        op = f"{type(self).__name__}.update"
        indices = _inputs.indices(op, "indices", indices, self.num_samples).cpu()
        value = _checks.number(op, "loss", loss.detach() if isinstance(loss, Tensor) else loss)
        new = torch.tensor(value, dtype=torch.float64, device="cpu").float()
        if not bool(new.isfinite()):
            raise ValueError(f"{op}: loss must be finite, got {value}")
        scores = averaged(self._scores[indices], new, 1 - self.decay).float()
        self._scores[indices] = scores
        return scores

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on: ``decay``, and ``scores`` [N], NaN where there is none yet."""
        return {"decay": self.decay, "scores": self._scores.clone()}

    @lasting
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            TypeError: it is no dictionary, or an entry has the wrong type.
            ValueError: an entry is missing or of another shape, a score is infinite, or ``decay`` is another one.
                Nothing has changed then.
        """
        name = type(self).__name__
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"{name}: state_dict must be a dictionary, got {type(state_dict).__name__}")
        if missing := [entry for entry in ("decay", "scores") if entry not in state_dict]:
            raise ValueError(f"{name}: state_dict must have {', '.join(missing)}")
        decay = _checks.number(name, "state_dict['decay']", state_dict["decay"])
        if decay != self.decay:
            raise ValueError(f"{name}: state_dict must be of scores with decay={self.decay}, got {decay}")
        scores = like(name, "scores", state_dict["scores"], self._scores)
        if bool(scores.isinf().any()):
            raise ValueError(f"{name}: state_dict['scores'] must be finite, or NaN where there is none yet")
        self._scores = scores
