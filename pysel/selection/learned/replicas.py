"""Several ranks that train one selector, each on a part of every batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Replicas:
    """What the ranks of a group have to tell each other; a single one has nothing to tell.

    Args:
        group: of the replicas, or None.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks, to which each adds its own gradient alone: gradients are averaged later."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self._group)
        return value + (total / self.count - value.detach())

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the mean of the gradients; of sparse ones, at the cost of the rows they have."""
        if self.count == 1:
            return
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:
                parameter.grad = self._mean_of_sparse(gradient.coalesce())
            else:
                gradient = torch.zeros_like(parameter) if gradient is None else gradient
                dist.all_reduce(gradient, group=self._group)
                parameter.grad = gradient / self.count

    def _mean_of_sparse(self, gradient: Tensor) -> Tensor:
        own = torch.tensor([gradient._nnz()], device=gradient.device)
        counts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(counts, own, group=self._group)
        rows = [int(count) for count in counts]
        indices, values = gradient.indices(), gradient.values()
        gathered = [
            torch.cat([part[..., :n] for part, n in zip(self._gather(padded, max(rows)), rows, strict=True)], -1)
            for padded in (indices, values.movedim(0, -1))
        ]
        mean = torch.sparse_coo_tensor(gathered[0], gathered[1].movedim(-1, 0) / self.count, gradient.shape)
        return mean.coalesce()

    def _gather(self, columns: Tensor, most: int) -> list[Tensor]:
        """Every rank's columns, at most so many, each padded to as many."""
        padded = columns.new_zeros(*columns.shape[:-1], most)
        padded[..., : columns.size(-1)] = columns
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded, group=self._group)
        return parts
