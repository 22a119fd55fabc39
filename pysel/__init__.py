"""Which samples to train on: fast, exact and reproducible selection for PyTorch training loops."""

from pysel import _fake, data, distributed, nn, ops, random, reference, sae, samplers, selection  # noqa: F401
from pysel._checks import check
from pysel._library import build_info
from pysel.ops import (
    factor_counts,
    factor_scores,
    gumbel_argmax,
    gumbel_sigmoid,
    gumbel_softmax,
    permutation,
    prepare,
    select,
    sparse_decode,
    topk,
    topk_encode,
    usage_penalty,
    usage_select_,
    usage_step_,
    usage_update_,
    weighted_sample,
)
from pysel.random import fold_in, key, split
from pysel.samplers import BatchSampler, SelectionLog, SelectionSampler, WeightedSampler

__all__ = [
    "BatchSampler",
    "SelectionLog",
    "SelectionSampler",
    "WeightedSampler",
    "build_info",
    "check",
    "data",
    "distributed",
    "factor_counts",
    "factor_scores",
    "fold_in",
    "gumbel_argmax",
    "gumbel_sigmoid",
    "gumbel_softmax",
    "key",
    "nn",
    "ops",
    "permutation",
    "prepare",
    "random",
    "reference",
    "sae",
    "samplers",
    "select",
    "selection",
    "sparse_decode",
    "split",
    "topk",
    "topk_encode",
    "usage_penalty",
    "usage_select_",
    "usage_step_",
    "usage_update_",
    "weighted_sample",
]
