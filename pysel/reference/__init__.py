"""Plain-torch oracle of every op, on the same random stream as the kernels.

Tests and benchmarks compare with it, and it is the kernel of every op on devices that have no native one (registered
as CompositeExplicitAutograd): slower, and right. Value checks there wait for the device unless ``validate=False``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _fake
from pysel.reference.gumbel import (
    gumbel_argmax,
    gumbel_sigmoid,
    gumbel_sigmoid_backward,
    gumbel_softmax,
    gumbel_softmax_backward,
)
from pysel.reference.permutation import permutation
from pysel.reference.prepared import prepare, sample_prepared, update_prepared_
from pysel.reference.random import fold_in, noise, random_words, split, words64
from pysel.reference.sample import draw_targets, fixed_weights, race_keys, weighted_sample
from pysel.reference.select import select
from pysel.reference.topk import (
    factor_counts,
    factor_scores,
    sddmm,
    sparse_decode,
    sparse_decode_backward,
    spmm_t,
    topk,
    topk_encode,
)
from pysel.reference.usage import usage_penalty, usage_select_, usage_step_, usage_update_

OPS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        draw_targets,
        factor_counts,
        factor_scores,
        fixed_weights,
        fold_in,
        gumbel_argmax,
        gumbel_sigmoid,
        gumbel_sigmoid_backward,
        gumbel_softmax,
        gumbel_softmax_backward,
        noise,
        permutation,
        prepare,
        race_keys,
        random_words,
        sample_prepared,
        sddmm,
        select,
        sparse_decode,
        sparse_decode_backward,
        split,
        spmm_t,
        topk,
        topk_encode,
        update_prepared_,
        usage_penalty,
        usage_select_,
        usage_step_,
        usage_update_,
        weighted_sample,
        words64,
    )
}
"""Reference of each op, by the op's name."""


def _into_out(fake: Callable[..., Tensor]) -> Callable[..., None]:
    name = fake.__name__

    def write(*args: Any, out: Tensor) -> None:
        _checks.out_shape(name, out, fake(*args).shape)  # before anything is changed
        out.copy_(OPS[name](*args))

    return write


OUT = {fake.__name__: _into_out(fake) for fake in _fake.OUT}
"""Reference of each out overload, by the op's name."""

_library = torch.library.Library("pysel", "IMPL")
for _name, _function in OPS.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")
for _name, _function in OUT.items():
    _library.impl(f"{_name}.out", _function, "CompositeExplicitAutograd")
