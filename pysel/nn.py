"""Modules over the ops: the sparse autoencoder of `pysel.sae`, and a stochastic selection gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pysel import _checks, ops
from pysel.sae import (
    SAEOutput,
    SAEReport,
    TopKSAE,
    evaluate_sae,
    geometric_median,
    load_sae,
    normal,
    save_sae,
    train_sae,
)

__all__ = [
    "GumbelSelector",
    "SAEOutput",
    "SAEReport",
    "TopKSAE",
    "evaluate_sae",
    "geometric_median",
    "load_sae",
    "normal",
    "save_sae",
    "train_sae",
]


class GumbelSelector(nn.Module):
    """A stochastic gate in (0, 1) for every sample: ``sigmoid((s + noise) / tau)``.

    The logits ``s`` are either a table with one trainable entry a sample, looked up by index, or the output
    of a network, in which case unseen samples can be judged too. The gate is the two-class Gumbel-Softmax
    (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712), as in ASSS, arXiv 2601.02081. The
    table and its sparse gradient, which makes a step cost O(batch) rather than O(num_samples), are ours.

    Args:
        num_samples: size of the table; or
        network: module from inputs [B, ...] to logits [B] or [B, 1]. Exactly one of the two.
        initial_logit: starting value of the table.

    Raises:
        TypeError, ValueError: both or neither of the two are given, or a size is out of range.

    Example:
        >>> import pysel
        >>> gate = GumbelSelector(10)
        >>> gate(torch.tensor([0, 3]), tau=0.5, key=pysel.key(0)).shape
        torch.Size([2])
        >>> gate.probabilities(torch.tensor([0, 3])).detach()
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self, num_samples: int | None = None, *, network: nn.Module | None = None, initial_logit: float = 0.0
    ) -> None:
        super().__init__()
        self._is_table = network is None
        if network is not None and num_samples is None:
            self.network = network
        elif num_samples is not None and network is None:
            num_samples = _checks.in_range("GumbelSelector", "num_samples", num_samples, 1, None)
            initial_logit = _checks.number("GumbelSelector", "initial_logit", initial_logit)
            # given weights: the default would draw num_samples numbers from the global generator
            table = torch.full((num_samples, 1), float(initial_logit), dtype=torch.float32, device="cpu")
            self.network = nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
        else:
            raise ValueError("GumbelSelector: give num_samples or network, and not both")

    @property
    def is_table(self) -> bool:
        """Whether inputs are sample indices: a network of the caller's, an embedding of groups too, takes its own."""
        return self._is_table

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits [B] of sample indices [B] (table) or of inputs [B, ...] (network)."""
        logits: Tensor = self.network(inputs)
        if logits.shape not in {(inputs.size(0),), (inputs.size(0), 1)}:
            n = inputs.size(0)
            raise ValueError(f"GumbelSelector: network must return [{n}] or [{n}, 1], got {list(logits.shape)}")
        return logits.reshape(-1)

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Chance [B] that each sample's gate opens: ``sigmoid(logits)``."""
        return torch.sigmoid(self.logits(inputs))

    def forward(
        self, inputs: Tensor, tau: float | Tensor = 1.0, hard: bool = False, *, key: Tensor | None = None
    ) -> Tensor:
        """Draw gates.

        Args:
            inputs: int64 [B] sample indices (table) or [B, ...] network inputs.
            tau: temperature, a number or a 0-d tensor; an annealed tensor does not recompile.
            hard: 0 or 1 forward, with the soft gate's gradient.
            key: int64 [2]; drawn from torch's default generator when missing.

        Returns:
            [B] gates.
        """
        return ops.gumbel_sigmoid(self.logits(inputs), tau, hard, key=key)
