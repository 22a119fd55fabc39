"""Plain-torch oracle of every op, on the same random stream as the kernels.

Tests and benchmarks compare with it, and it is the kernel of every op on devices that have no native one (registered
as CompositeExplicitAutograd): slower, and right. Value checks there wait for the device unless ``validate=False``.
"""

import torch

from pysel.reference.gumbel import (
    gumbel_argmax,
    gumbel_sigmoid,
    gumbel_sigmoid_backward,
    gumbel_softmax,
    gumbel_softmax_backward,
)
from pysel.reference.random import fold_in, noise, random_words, split
from pysel.reference.sample import weighted_sample

OPS = {
    f.__name__: f
    for f in (
        fold_in,
        gumbel_argmax,
        gumbel_sigmoid,
        gumbel_sigmoid_backward,
        gumbel_softmax,
        gumbel_softmax_backward,
        noise,
        random_words,
        split,
        weighted_sample,
    )
}
"""Reference of each op, by the op's name."""

_library = torch.library.Library("pysel", "IMPL")
for _name, _function in OPS.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")
