"""Golden vectors: what the random stream, the noise and the ops give for fixed keys, for all time.

A release that changes one of them is a new major version. `python -m tests.golden.write` writes them from the
reference; the tests ask both the reference and the kernels for them.
"""

import json
from pathlib import Path

import torch

HERE = Path(__file__).parent


def load(name):
    return json.loads((HERE / f"{name}.json").read_text())


def logits(shape):
    """Logits from -3.125 to 3.125 that are exact in every floating dtype."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((i * 37 % 101 - 50) / 16).view(shape)


def weights(shape):
    """Weights from 0 to 6.25, every 101st 0."""
    return logits(shape) + 3.125


INPUTS = {"logits": logits, "weights": weights}


def _selections():
    scores = logits((300,)).mul(4).round().float()  # 25 values
    groups = torch.arange(300) * 7 % 11 % 5
    quotas = torch.tensor([20, 0, 7, 40, 3])
    key, counts = torch.tensor([20_240_601, 2**32 - 2]), torch.arange(300.0) % 4
    grouped = (groups, quotas)
    return {
        "select key": lambda: (scores, 70, True, None, None, key, None),
        "select smallest, key": lambda: (scores, 70, False, None, None, key, None),
        "select groups": lambda: (scores, 70, True, *grouped, None, None),
        "select groups, key": lambda: (scores, 70, True, *grouped, key, None),
        "weighted_sample groups, draw": lambda: (scores, 70, False, True, "draw", *grouped, key, 3, None),
        "weighted_sample groups, index": lambda: (scores, 70, False, True, "index", *grouped, key, 3, None),
        "weighted_sample groups, shuffled": lambda: (scores, 70, False, True, "shuffled", *grouped, key, 3, None),
        "usage_select_ log": lambda: (
            counts.clone(), scores, scores.flip(0), 0.25, 0.5, "log", 1, 70, None, None, key, None
        ),
        "usage_select_ groups": lambda: (
            counts.clone(), scores, scores.flip(0), 0.25, 0.5, "log", 1, 70, *grouped, key, None
        ),
    }  # fmt: skip


# The raw arguments of calls, by the op's name and what is special about it.
SELECTIONS = _selections()
