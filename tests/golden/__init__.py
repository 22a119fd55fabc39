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
