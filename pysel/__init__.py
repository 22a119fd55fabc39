"""Which samples to train on: fast, exact and reproducible selection for PyTorch training loops."""

import torch as _torch  # noqa: F401  (its libraries must be there before _C is loaded)

from pysel import _C  # isort: skip  (declares the ops that everything below refers to)
from pysel import _fake, reference
from pysel._C import build_info
from pysel.ops import gumbel_argmax, gumbel_sigmoid, gumbel_softmax, weighted_sample
from pysel.random import fold_in, key, split
