"""Usage counts and factor counts of samples that are spread over ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from pysel import _checks, ops
from pysel.distributed.agree import add, meet
from pysel.ops.usage import COUNTS


def usage_step_(
    counts: Tensor,
    selected: Tensor,
    scores: Tensor,
    gamma: float,
    decay: float = 1.0,
    form: str = "log",
    step: int = 1,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Update this rank's counts and penalise its scores, once all ranks have agreed: `pysel.usage_step_` of the whole.

    Args:
        counts: [n], this rank's shard. Updated in place, on all ranks or on none.
        selected: int64 [m], rows of this shard, as the functions of `pysel.distributed` return them.
        scores: [n], this rank's shard.
        gamma, decay, form, step: see `pysel.usage_step_`; the same on all ranks.
        process_group: the ranks; default all.

    Returns:
        penalised scores [n] of this shard.

    Raises:
        ValueError, IndexError, TypeError: as `pysel.usage_step_`, on the rank that holds the cause; ranks that differ
            in an argument, on all.
        RuntimeError: torch.distributed is not initialised, or another rank has refused its shard.

    Example:
        >>> import tempfile, torch, pysel.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> counts = torch.zeros(3)
        >>> pysel.distributed.usage_step_(counts, torch.tensor([1]), torch.ones(3), gamma=0.5)
        tensor([1.0000, 0.6534, 1.0000])
        >>> torch.distributed.destroy_process_group()
    """
    op = "usage_step_"
    updated = penalised = counts

    def prepare() -> tuple[dict[str, Any], int]:
        nonlocal updated, penalised
        _checks.tensor(op, "counts", counts, COUNTS)
        updated = counts.clone()
        penalised = ops.usage_step_(updated, selected, scores, gamma, decay, form, step)
        numbers = {
            name: _checks.number(op, name, x) for name, x in (("gamma", gamma), ("decay", decay), ("step", step))
        }
        return {**numbers, "form": form, "counts' dtype": str(counts.dtype)}, 0

    meet(op, counts, prepare, process_group)
    counts.copy_(updated)
    return penalised


def factor_counts(
    values: Tensor,
    indices: Tensor,
    num_factors: int,
    *,
    groups: Tensor | None = None,
    num_groups: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Count the rows of all ranks in which each factor is active: `pysel.factor_counts` of the whole.

    Args:
        values, indices, groups: this rank's rows, see `pysel.factor_counts`.
        num_factors, num_groups: the same on all ranks.
        process_group: the ranks; default all.

    Returns:
        int64 [H], or with groups [G, H]; the same on all ranks.

    Raises:
        ValueError, IndexError, TypeError: as `pysel.factor_counts`, on the rank that holds the cause; ranks that differ
            in an argument, on all.
        RuntimeError: torch.distributed is not initialised, or another rank has refused its shard.
    """
    op = "factor_counts"
    counted = values

    def prepare() -> tuple[dict[str, Any], int]:
        nonlocal counted
        counted = ops.factor_counts(values, indices, num_factors, groups=groups, num_groups=num_groups)
        of = None if num_groups is None else _checks.integer(op, "num_groups", num_groups)
        return {"num_factors": _checks.integer(op, "num_factors", num_factors), "num_groups": of}, 0

    meet(op, values, prepare, process_group)
    return add(counted, process_group)
