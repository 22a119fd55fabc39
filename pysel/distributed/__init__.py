"""The ops over vectors of which each rank holds a shard: bit for bit what one process computes from the whole.

Shards are consecutive parts of the vector in the order of the ranks, of any lengths, empty ones included. Every rank of
the process group calls with its own shard and with equal other arguments, and gets the rows *of its shard* that were
chosen, ascending; shifted by the lengths of the shards before they are one process's result, index for index.

Whatever N and k are, a call takes a handful of collectives of a few hundred KiB. Before anything else the ranks compare
their arguments: where they differ, or where one refuses its shard, every rank raises and nothing has changed. When a
rank is lost in the middle, gloo raises on the others after the group's timeout, again with nothing changed; NCCL ends
the process.
"""

from pysel.distributed.dynamic import ShardedDynamicSelector
from pysel.distributed.sample import weighted_sample
from pysel.distributed.select import select
from pysel.distributed.usage import factor_counts, usage_step_

__all__ = ["ShardedDynamicSelector", "factor_counts", "select", "usage_step_", "weighted_sample"]
