"""The ops, as the public functions of :mod:`pysel`."""

from pysel.ops.gumbel import gumbel_argmax, gumbel_sigmoid, gumbel_softmax
from pysel.ops.sample import weighted_sample

__all__ = ["gumbel_argmax", "gumbel_sigmoid", "gumbel_softmax", "weighted_sample"]
