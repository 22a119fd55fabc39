"""The ops, as the public functions of :mod:`pysel`."""

from pysel.ops.gumbel import gumbel_argmax, gumbel_sigmoid, gumbel_softmax
from pysel.ops.permutation import permutation
from pysel.ops.prepared import PreparedWeights, prepare
from pysel.ops.sample import weighted_sample
from pysel.ops.select import select
from pysel.ops.topk import factor_counts, factor_scores, sparse_decode, topk, topk_encode
from pysel.ops.usage import usage_penalty, usage_select_, usage_step_, usage_update_

__all__ = [
    "PreparedWeights",
    "factor_counts",
    "factor_scores",
    "gumbel_argmax",
    "gumbel_sigmoid",
    "gumbel_softmax",
    "permutation",
    "prepare",
    "select",
    "sparse_decode",
    "topk",
    "topk_encode",
    "usage_penalty",
    "usage_select_",
    "usage_step_",
    "usage_update_",
    "weighted_sample",
]
