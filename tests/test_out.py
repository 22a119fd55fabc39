"""The out= argument of every op that has one: what it receives, and what it refuses before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import pysel
from pysel import _fake, reference
from tests.op_samples import RAW
from tests.tensors import assert_same_bits


@dataclass
class Call:
    """A call of an op with tensors of its own, of which it changes only counts."""

    function: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    rest: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, **changed: Any) -> Tensor:
        tensors = {name: changed.pop(name, t.clone()) for name, t in self.tensors.items()}
        return self.function(*tensors.values(), *self.rest, **dict(self.options) | changed)


N = 2077


def calls(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Call]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def indices(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator).to(device)

    key = (("key", pysel.key(3, device=device)),)
    table = {}
    for hard in (False, True):
        for op in (pysel.gumbel_softmax, pysel.gumbel_sigmoid):
            table[f"{op.__name__}{' hard' if hard else ''}"] = Call(op, {"logits": normal(9, N)}, (0.5, hard), key)
    table["gumbel_softmax along columns"] = Call(
        pysel.gumbel_softmax, {"logits": normal(77, 140)}, (0.5,), (*key, ("dim", 0))
    )
    for order in ("draw", "index", "shuffled"):
        for replacement in (False, True):
            table[f"weighted_sample {order}{' with replacement' if replacement else ''}"] = Call(
                pysel.weighted_sample, {"weights": normal(N).exp()}, (900, replacement), (*key, ("order", order))
            )
    table["weighted_sample of rows"] = Call(pysel.weighted_sample, {"weights": normal(9, 300).exp()}, (40,), key)
    table["select"] = Call(pysel.select, {"scores": normal(N)}, (700,))
    codes = {"values": normal(30, 5), "indices": indices(50, 30, 5), "weight": normal(50, 33), "bias": normal(33)}
    table["sparse_decode"] = Call(pysel.sparse_decode, codes)
    counts, selected = indices(9, N).float(), indices(N, 300)
    used = {"counts": counts, "selected": selected, "scores": normal(N)}
    table["usage_penalty"] = Call(pysel.usage_penalty, {"scores": normal(N), "counts": counts}, (0.3, "exp"))
    table["usage_step_"] = Call(pysel.usage_step_, used, (0.3, 0.9))
    table["usage_step_ ascending"] = Call(pysel.usage_step_, used | {"selected": selected.sort().values}, (0.3, 0.9))
    return table


IN_STEP = {"gumbel_softmax": "logits", "gumbel_sigmoid": "logits", "usage_penalty": "scores", "usage_step_": "scores"}
"""The argument that may be out itself."""

TABLE = calls()
every_call = pytest.mark.parametrize("name", TABLE)
in_step = pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name].function.__name__ in IN_STEP])


def test_the_table_has_every_op():
    assert {call.function.__name__ for call in calls().values()} == {fake.__name__ for fake in _fake.OUT}


@every_call
def test_out_receives_the_result_and_is_returned(name, dtype, device):
    call = calls(dtype, device)[name]
    wanted = call()
    mirrored = torch.empty_like(wanted).permute(*reversed(range(wanted.dim()))).contiguous()
    strided = torch.empty(*wanted.shape, 2, dtype=wanted.dtype, device=device)[..., 1]
    outs = [torch.empty_like(wanted), mirrored.permute(*reversed(range(wanted.dim()))), strided]
    if wanted.is_floating_point():
        outs.append(torch._neg_view(torch.empty_like(wanted)))
    for out in outs:
        out.fill_(7)
        before = out._version
        assert call(out=out) is out
        assert out._version > before
        assert_same_bits(out.resolve_neg(), wanted)


@every_call
def test_nothing_beside_out_is_written(name, dtype, device):
    call = calls(dtype, device)[name]
    wanted = call()
    padded = torch.full((wanted.numel() + 14,), 7, dtype=wanted.dtype, device=device)
    call(out=padded[7:-7].view(wanted.shape))  # which is not aligned to more than an element
    assert_same_bits(padded[7:-7].view(wanted.shape), wanted)
    assert (padded[:7] == 7).all()
    assert (padded[-7:] == 7).all()


@pytest.mark.parametrize("name", ["usage_step_", "usage_step_ ascending"])
def test_counts_are_the_same_with_and_without_out(name, device):
    call = calls(device=device)[name]
    wanted, got = call.tensors["counts"].clone(), call.tensors["counts"].clone()
    call(counts=wanted)
    version = got._version
    call(counts=got, out=torch.empty_like(call.tensors["scores"]))
    assert_same_bits(got, wanted)
    assert got._version > version


@in_step
def test_out_may_be_the_argument_it_is_made_from(name, dtype, device):
    call = calls(dtype, device)[name]
    argument = IN_STEP[call.function.__name__]
    wanted, given = call(), call.tensors[argument].clone()
    assert call(**{argument: given}, out=given) is given
    assert_same_bits(given, wanted)


@every_call
@pytest.mark.parametrize("shift", [0, 1, -1, 300])
def test_out_that_overlaps_an_argument_is_right_or_refused(name, shift, device):
    call = calls(device=device)[name]
    wanted = call()
    refused = 0
    for argument, t in call.tensors.items():
        # bytes that hold the argument and, `shift` elements further, the result
        size = max(t.numel() * t.element_size(), wanted.numel() * wanted.element_size())
        step = 8 * abs(shift)
        memory = torch.zeros(size // 8 * 8 + 16 + step, dtype=torch.uint8, device=device)
        places = (0, step) if shift >= 0 else (step, 0)
        given, out = (
            memory[place : place + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
            for place, like in zip(places, (t, wanted), strict=True)
        )
        given.copy_(t)
        try:
            call(**{argument: given}, out=out)
        except ValueError as error:
            assert "out must share no memory with" in str(error)
            assert_same_bits(given, t)
            refused += 1
            continue
        assert_same_bits(out, wanted)
    assert refused or (shift == 0 and call.function.__name__ in IN_STEP)


def test_counts_with_gaps_may_not_hold_out():
    memory = torch.zeros(2, 40)
    with pytest.raises(ValueError, match="usage_penalty: out must share no memory with counts"):
        pysel.usage_penalty(torch.rand(40), memory.view(-1)[::2], 0.1, out=memory[1])
    with pytest.raises(ValueError, match="usage_step_: out must share no memory with counts"):
        pysel.usage_step_(memory.view(-1)[::2], torch.tensor([3]), torch.rand(40), 0.1, out=memory[1])
    assert (memory == 0).all()


@pytest.mark.parametrize("op", [pysel.select, pysel.weighted_sample])
def test_groups_and_quotas_may_not_hold_out(op, device):
    scores, groups = torch.rand(40, device=device), torch.arange(40, device=device) % 2
    quotas = torch.tensor([1, 1, 0], device=device)
    for name, out in (("groups", groups[7:9]), ("quotas", quotas[1:])):
        with pytest.raises(ValueError, match=f"{op.__name__}: out must share no memory with {name}"):
            op(scores, 2, groups=groups, quotas=quotas, key=pysel.key(0, device=device), out=out)
    assert groups.sum() == 20
    assert quotas.tolist() == [1, 1, 0]


@every_call
def test_bad_out_is_refused_and_nothing_is_written(name):
    call = calls()[name]
    op, wanted = call.function.__name__, call()
    shape, other = list(wanted.shape), [*wanted.shape[:-1], wanted.shape[-1] + 1]
    dtype = str(wanted.dtype).removeprefix("torch.")
    for bad, error, message in [
        ([0.0], TypeError, "out must be a Tensor, got list"),
        (torch.zeros(shape, dtype=torch.int16), TypeError, f"out must be {dtype}, got torch.int16"),
        (wanted.new_zeros(other), ValueError, rf"out must have shape \[{str(shape)[1:-1]}\], got \["),
        (wanted.new_zeros(1, *shape), ValueError, "out must have shape"),
        (wanted.new_zeros(shape, device="meta"), ValueError, "out must be on the device of"),
        (wanted.new_zeros(1).expand(shape), ValueError, "out must not be an expanded tensor"),
    ]:
        given = {n: t.clone() for n, t in call.tensors.items()}
        with pytest.raises(error, match=f"{op}: {message}"):
            call(**given, out=bad)
        for n, t in given.items():
            assert_same_bits(t, call.tensors[n])
    if wanted.is_floating_point():
        with pytest.raises(ValueError, match=f"{op}: out must not require grad"):
            call(out=torch.zeros_like(wanted).requires_grad_())


LAST_ROW = (-1, slice(None))


@pytest.mark.parametrize(
    ("name", "argument", "place", "value"),
    [
        ("gumbel_softmax", "logits", (-1, -1), torch.inf),
        ("gumbel_softmax", "logits", LAST_ROW, -torch.inf),
        ("gumbel_softmax hard", "logits", LAST_ROW, -torch.inf),
        ("gumbel_softmax along columns", "logits", (slice(None), -1), -torch.inf),
        ("gumbel_sigmoid", "logits", (-1, -1), torch.inf),
        ("weighted_sample draw", "weights", -1, -1.0),
        ("weighted_sample index", "weights", -1, torch.nan),
        ("weighted_sample shuffled", "weights", slice(800, None), 0.0),
        ("weighted_sample of rows", "weights", LAST_ROW, 0.0),
        ("weighted_sample index with replacement", "weights", slice(None), 0.0),
        ("select", "scores", -1, torch.nan),
        ("sparse_decode", "indices", (-1, -1), 50),
        ("sparse_decode", "indices", (1, 2), -1),
        ("usage_step_", "selected", -1, N),
        ("usage_step_ ascending", "selected", 0, -1),
    ],
)
def test_bad_values_leave_out_and_arguments_untouched(name, argument, place, value):
    call = calls()[name]
    out = torch.full_like(call(), 7)
    given = {n: t.clone() for n, t in call.tensors.items()}
    given[argument][place] = value
    before = {n: t.clone() for n, t in given.items()}
    with pytest.raises((ValueError, IndexError), match=f"{call.function.__name__}: "):
        call(**given, out=out)
    assert (out == 7).all()
    for n, t in given.items():
        assert_same_bits(t, before[n])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gumbel_softmax", {"tau": -1.0}),
        ("gumbel_sigmoid", {"tau": -1.0}),
        ("weighted_sample draw", {"k": -1}),
        ("select", {"k": N + 1}),
        ("usage_penalty", {"gamma": -1.0}),
        ("usage_step_", {"gamma": 0.1, "decay": 2.0}),
    ],
)
def test_bad_numbers_leave_out_and_arguments_untouched(name, options):
    call = calls()[name]
    out = torch.full_like(call(), 7)
    given = {n: t.clone() for n, t in call.tensors.items()}
    with pytest.raises((ValueError, IndexError), match=f"{call.function.__name__}: {list(options)[-1]} must be"):
        call.function(**given, **dict(call.options), **options, out=out)
    assert (out == 7).all()
    for n, t in given.items():
        assert_same_bits(t, call.tensors[n])


@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name]().is_floating_point()])
def test_gradients_do_not_pass_through_out(name):
    call = calls()[name]
    out = torch.empty_like(call())
    argument = next(n for n in ("logits", "scores", "values") if n in call.tensors)
    given = {argument: call.tensors[argument].clone().requires_grad_()}
    message = "scores must not require grad" if call.function is pysel.usage_step_ else "out must be None"
    with pytest.raises(ValueError, match=message):
        call(**given, out=out)
    with torch.no_grad():
        assert_same_bits(call(**given, out=out), call())


@every_call
def test_backward_of_what_saved_out_raises(name):
    call = calls()[name]
    out = torch.zeros_like(call())
    weight = torch.randn(out.shape if out.is_floating_point() else N, requires_grad=True)
    loss = (weight * out if out.is_floating_point() else weight.take(out)).sum()
    call(out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_call
def test_compiled(name):
    call = calls()[name]
    wanted, out = call(), torch.zeros_like(call())
    torch._dynamo.reset()
    compiled = torch.compile(lambda out, **tensors: call(**tensors, out=out) + 1, fullgraph=True)
    assert_same_bits(compiled(out, **{n: t.clone() for n, t in call.tensors.items()}), wanted + 1)
    assert_same_bits(out, wanted)


def raw(call: Call) -> tuple[Any, ...]:
    """The arguments of the raw op, from those of its public function."""
    op, tensors = call.function.__name__, [t.clone() for t in call.tensors.values()]
    if op in RAW:
        return RAW[op](*tensors, *call.rest, **dict(call.options))
    defaults = {"select": (True, None, None, None, None), "usage_penalty": (1,), "usage_step_": ("log", 1)}
    return (*tensors, *call.rest, *defaults.get(op, ()))


@every_call
def test_raw_op_and_reference(name):
    call = calls()[name]
    op, wanted = call.function.__name__, call()
    out = torch.zeros_like(wanted)
    getattr(torch.ops.pysel, op).out(*raw(call), out=out)
    assert_same_bits(out, wanted)
    fallback = reference.OUT[op]
    fallback(*raw(call), out=out.zero_())
    assert_same_bits(out, wanted)
    for run in (getattr(torch.ops.pysel, op).out, fallback):
        arguments = raw(call)
        with pytest.raises(ValueError, match=f"{op}: out must have shape"):
            run(*arguments, out=wanted.new_zeros(wanted.numel() + 1))
        for got, given in zip(arguments, raw(call), strict=True):
            assert not isinstance(got, Tensor) or torch.equal(got, given)


@pytest.mark.parametrize("name", ["gumbel_softmax", "select", "sparse_decode", "usage_step_", "weighted_sample draw"])
def test_opcheck(name):
    call = calls()[name]
    op = getattr(torch.ops.pysel, call.function.__name__).out
    utilities = ["test_schema", "test_faketensor"]  # the others ask for a result to differentiate
    torch.library.opcheck(op, raw(call), {"out": torch.zeros_like(call())}, test_utils=utilities)
