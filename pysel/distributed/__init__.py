"""What is spread over ranks, of which each holds a shard: bit for bit what one process computes from the whole.

Shards are consecutive parts of a vector, or of the rows of features, in the order of the ranks, of any lengths, empty
ones included. Every rank of the process group calls with its own shard and with equal other arguments. What concerns
samples comes back for the rank's own, by their places *in its shard*: those chosen, ascending, or a score for each.
Shifted by the lengths of the shards before, they are one process's result, index for index.

Whatever N and k are, a call takes a handful of collectives of a few hundred KiB; `train_sae` also brings the rows that
it trains on to the first rank. Before anything else the ranks compare their arguments: where they differ, or where one
refuses its shard, every rank raises and nothing has changed. When a rank is lost in the middle, gloo raises on the
others after the group's timeout, again with nothing changed; NCCL ends the process.
"""

from pysel.distributed.dynamic import ShardedDynamicSelector
from pysel.distributed.sae import factor_tables, train_sae
from pysel.distributed.sample import weighted_sample
from pysel.distributed.select import select
from pysel.distributed.usage import factor_counts, usage_step_

__all__ = [
    "ShardedDynamicSelector",
    "factor_counts",
    "factor_tables",
    "select",
    "train_sae",
    "usage_step_",
    "weighted_sample",
]
