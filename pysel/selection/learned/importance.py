"""What a fitted selector says of every sample, as arrays and files."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Importances(NamedTuple):
    """A row a sample, in the order of the data: `ASSS.importances` makes it.

    Example:
        >>> x, y = torch.randn(8, 2), torch.arange(8) % 2
        >>> from pysel.selection import ASSS
        >>> table = ASSS(0.5, epochs=2, key=0).fit(x, y, lambda: torch.nn.Linear(2, 2)).importances()
        >>> list(table.to_numpy()), int(table.selected.sum())
        (['logit', 'probability', 'rank', 'loss', 'margin', 'stratum', 'selected'], 4)
    """

    logit: Tensor  # [N] what ranks
    probability: Tensor  # [N]
    rank: Tensor  # int64 [N], 1 is the largest logit; among equal ones those in the pool come first
    loss: Tensor  # [N] of the task network at the end of the game, the input not attenuated; NaN where never seen
    # [N] logit less that of the best out of the pool or, of one that is out, of the worst in it; without ``pool`` it is
    # the best out of the subset and the worst in it, of its stratum
    margin: Tensor
    stratum: Tensor  # int64 [N], 0 without strata
    selected: Tensor  # bool [N]

    def to_numpy(self) -> dict[str, Any]:
        """The columns as numpy arrays [N]; ``pandas.DataFrame`` takes them as they are."""
        return {name: column.cpu().numpy() for name, column in self._asdict().items()}

    def to_csv(self, path: str | Path) -> None:
        """Write a line a sample, its number first; each number in as few digits as give it back."""
        columns = self.to_numpy()
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["sample", *columns])
            texts = [column.astype(str).tolist() for column in columns.values()]
            writer.writerows(zip(range(self.logit.numel()), *texts, strict=True))

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file, with a column ``sample`` first.

        Raises:
            ImportError: pyarrow is not installed.
        """
        try:
            arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        except ImportError:
            raise ImportError("Importances: Parquet is written with pyarrow. Type: pip install pyarrow") from None
        parquet.write_table(arrow.table({"sample": np.arange(self.logit.numel()), **self.to_numpy()}), path)


def importances(
    logits: Tensor,
    probabilities: Tensor,
    losses: Tensor,
    pool: Tensor,
    subset: Tensor,
    strata: Tensor | None,
    stratified: bool,
) -> Importances:
    """The table of a selector that keeps ``subset``, int64 [k], of all N samples.

    ``pool``, int64 [P], are the samples of the largest logits, of each stratum or, unless ``stratified``, of all.
    """
    n = logits.numel()
    kept, selected = (torch.zeros(n, dtype=torch.bool, device=logits.device) for _ in "12")
    kept[pool] = True
    selected[subset] = True
    stratum = torch.zeros(n, dtype=torch.int64, device=logits.device) if strata is None else strata.long()
    # of equal logits those in the pool come first, then the lower index
    order = (~kept).int().argsort(stable=True)
    order = order[logits[order].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(1, n + 1, device=logits.device)
    within = stratum if stratified else torch.zeros_like(stratum)
    count = int(within.max()) + 1
    worst = logits.new_full((count,), torch.inf).scatter_reduce(0, within[kept], logits[kept], "amin")
    best = logits.new_full((count,), -torch.inf).scatter_reduce(0, within[~kept], logits[~kept], "amax")
    margin = logits - torch.where(kept, best[within], worst[within])
    return Importances(logits, probabilities, rank, losses, margin, stratum, selected)
