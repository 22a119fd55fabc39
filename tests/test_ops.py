"""What holds for every op of the table in op_samples.py, whatever it computes."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import pysel
from pysel import reference
from tests import fingerprint
from tests.op_samples import ONE_OF_EACH, SAMPLES, OpSample
from tests.tensors import assert_same_bits, laid_out, opcheck

INFO = pysel.build_info()
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)
one_of_each = pytest.mark.parametrize("sample", ONE_OF_EACH, ids=str)
ops = pytest.mark.parametrize("op", ["gumbel_softmax", "gumbel_sigmoid", "gumbel_argmax", "weighted_sample"])


# --- values ---


@every_sample
def test_equals_the_reference_in_any_memory(sample, dtype, layout, device, key):
    x = sample.input(dtype, device)
    wanted = sample.reference(x, key)
    given = laid_out(x, layout)
    got = sample.call(given, key)
    assert got.is_contiguous()
    assert got.device.type == device
    sample.assert_agree(got, wanted)


@every_sample
def test_gradient_equals_the_reference_in_any_memory(sample, dtype, layout, device, key):
    if not sample.differentiable:
        x = sample.input(dtype, device).requires_grad_()
        assert not sample.call(x, key).requires_grad
        return
    x = sample.input(dtype, device)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x)
    tau, start = sample.arguments.get("tau", 1.0), sample.arguments.get("start", 0)
    tau = torch.tensor(tau, dtype=torch.float64)
    if sample.op == "gumbel_sigmoid":
        wanted = reference.gumbel_sigmoid_backward(weight, x, tau, key, start)
    else:
        y = sample.call(x, key, hard=False)
        wanted = reference.gumbel_softmax_backward(weight, y, tau, sample.arguments.get("dim", -1))
    given = laid_out(x, layout).detach().requires_grad_()
    (got,) = torch.autograd.grad(sample.call(given, key), given, laid_out(weight, layout))
    if sample.op == "gumbel_sigmoid":
        assert_same_bits(got, wanted)
    else:
        # y * (grad - mean) cancels where grad is near the mean, which is summed in another order
        error = (got.double() - wanted.double()).abs()
        scale = weight.abs().max().double() / float(tau)
        assert (error <= 8 * torch.finfo(dtype).eps * scale + torch.finfo(dtype).tiny).all()


@ops
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)], ids=str)
def test_empty(op, shape, dtype, device, key):
    if op == "gumbel_argmax" and shape[-1] == 0:
        with pytest.raises(IndexError, match="gumbel_argmax: dim must have at least one element"):
            pysel.gumbel_argmax(torch.zeros(shape, dtype=dtype, device=device), key=key)
        return
    sample = OpSample(op, shape, {"k": 0} if op == "weighted_sample" else {})
    x = sample.input(dtype, device)
    got = sample.call(x, key)
    assert got.numel() == 0
    assert_same_bits(got, sample.reference(x, key))


@one_of_each
def test_one_element(sample, dtype, device, key):
    arguments = {k: v for k, v in sample.arguments.items() if k not in ("k", "dim")}
    sample = OpSample(sample.op, (1,), arguments | ({"k": 1} if "k" in sample.arguments else {}))
    x = sample.input(dtype, device)
    got = sample.call(x, key)
    sample.assert_agree(got, sample.reference(x, key))
    if sample.op == "gumbel_softmax":
        assert got.tolist() == [1.0]
    elif sample.op != "gumbel_sigmoid":
        assert got.sum() == 0  # the only index there is
    if sample.op != "weighted_sample":  # weights need a dimension
        zero_dim = sample.call(x[0], key)
        assert zero_dim.shape == ()
        assert_same_bits(zero_dim.reshape(got.shape), got)


@every_sample
def test_no_argument_is_changed(sample, dtype, device, key):
    x = sample.input(dtype, device)
    x_before, key_before = x.clone(), key.clone()
    versions = x._version, key._version
    sample.call(x, key)
    if sample.differentiable:
        leaf = x.clone().requires_grad_()
        weight = torch.ones_like(x)
        torch.autograd.grad(sample.call(leaf, key), leaf, weight)
        assert torch.equal(weight, torch.ones_like(x))
        assert torch.equal(leaf, x_before)
    assert torch.equal(x, x_before)
    assert torch.equal(key, key_before)
    assert (x._version, key._version) == versions


# with replacement, start counts draws: test_sample.py
@pytest.mark.parametrize("sample", [s for s in SAMPLES if not s.arguments.get("replacement")], ids=str)
def test_noise_is_a_function_of_the_logical_index_alone(sample, key):
    # A shard that starts s elements later, with the key's blocks moved back by s / 4, sees the same noise.
    x = sample.input()
    start = sample.arguments.get("start", 0)
    moved = key - torch.tensor([0, 10])
    arguments = {k: v for k, v in sample.arguments.items() if k != "start"}
    unshuffled = {"order": "index"} if "k" in arguments else {}  # words of the order stream are 64 bits wide
    plain = OpSample(sample.op, sample.shape, arguments | unshuffled)
    assert_same_bits(plain.call(x, moved, start=start + 40), plain.call(x, key, start=start))


# --- the same bits everywhere ---


def test_same_bits_for_any_number_of_threads(threads):
    threads(1)
    one = fingerprint.fingerprint()
    for count in (2, 3):
        threads(count)
        assert fingerprint.fingerprint() == one


# The list goes from least to most demanding, so this machine runs everything up to the variant it chose.
@pytest.mark.parametrize("variant", INFO["cpu_variants"][: INFO["cpu_variants"].index(INFO["cpu_variant"])])
def test_same_bits_for_every_instruction_set(variant):
    command = [sys.executable, "-m", "tests.fingerprint"]
    environment = os.environ | {"PYSEL_CPU_VARIANT": variant}
    root = Path(__file__).parent.parent
    printed = subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True).stdout
    told = json.loads(printed)
    assert told["variant"] == variant
    assert told["hashes"] == fingerprint.fingerprint()


@one_of_each
def test_same_bits_under_any_default_device_and_dtype(sample, key):
    x = sample.input()
    wanted, oracle = sample.call(x, key), sample.reference(x, key)
    with torch.device("meta"):
        assert_same_bits(sample.call(x, key), wanted)
        sample.assert_agree(sample.call(x, key), oracle)
    try:
        for default in (torch.float64, torch.float16):
            torch.set_default_dtype(default)
            assert_same_bits(sample.call(x, key), wanted)
            assert_same_bits(sample.reference(x, key), oracle)
    finally:
        torch.set_default_dtype(torch.float32)


def test_python_threads_do_not_disturb_each_other(key):
    samples = [OpSample(s.op, (50_000,), s.arguments | {"start": 1}) for s in ONE_OF_EACH if len(s.shape) == 1]
    wanted = [s.call(s.input(), key) for s in samples]
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda _: [s.call(s.input(), key) for s in samples], range(12)):
            for a, b in zip(got, wanted, strict=True):
                assert_same_bits(a, b)


@one_of_each
def test_inference_mode_gives_the_same(sample, key):
    wanted = sample.call(sample.input(), key)
    with torch.inference_mode():
        assert_same_bits(sample.call(sample.input(), key), wanted)


# --- numbers and flags of any kind ---

X = torch.linspace(-2, 2, 12)
SCALARS = {
    "gumbel_softmax dim": lambda v: pysel.gumbel_softmax(X.view(2, 3, 2), dim=v(1), key=0),
    "gumbel_softmax tau": lambda v: pysel.gumbel_softmax(X, v(2) * 0.25, key=0),
    "gumbel_sigmoid start": lambda v: pysel.gumbel_sigmoid(X, start=v(1), key=0),
    "gumbel_argmax dim": lambda v: pysel.gumbel_argmax(X.view(2, 3, 2), dim=v(1), key=0),
    "weighted_sample k": lambda v: pysel.weighted_sample(X.exp(), v(2), start=v(1), key=0),
    "select k": lambda v: pysel.select(X, v(2)),
    "permutation n": lambda v: pysel.permutation(v(9), start=v(1), stop=v(3), key=0),
    "split n": lambda v: pysel.split(pysel.key(0), v(2)),
    "fold_in data": lambda v: pysel.fold_in(pysel.key(0), v(2)),
    "usage_update_ decay": lambda v: pysel.usage_update_(torch.ones(12), torch.arange(2), v(1)),
    "usage_penalty gamma": lambda v: pysel.usage_penalty(X, X.abs(), v(2), "rate", v(3)),
    "usage_step_ gamma": lambda v: pysel.usage_step_(X.abs(), torch.arange(2), X, v(2), v(1), "rate", v(3)),
    "usage_select_ mix": lambda v: pysel.usage_select_(X.abs(), X, -X, v(1), v(2), v(3), "rate", v(2)),
}
FLAGS = {
    "gumbel_softmax: hard": lambda v: pysel.gumbel_softmax(X, 1.0, v, key=0),
    "gumbel_sigmoid: hard": lambda v: pysel.gumbel_sigmoid(X, 1.0, v, key=0),
    "gumbel_argmax: validate": lambda v: pysel.gumbel_argmax(X, validate=v, key=0),
    "weighted_sample: replacement": lambda v: pysel.weighted_sample(X.exp(), 2, v, key=0),
    "weighted_sample: log_weights": lambda v: pysel.weighted_sample(X.abs(), 2, log_weights=v, key=0),
    "select: largest": lambda v: pysel.select(X, 2, v),
    "select: validate": lambda v: pysel.select(X, 2, validate=v),
}


@pytest.mark.parametrize("argument", SCALARS)
def test_numbers_may_be_numpys_or_tensors(argument):
    call = SCALARS[argument]
    wanted = call(int)
    for kind in (np.int64, np.uint8, np.array, torch.tensor):
        assert_same_bits(call(kind), wanted)


@pytest.mark.parametrize("argument", FLAGS)
def test_flags_are_flags_of_any_kind_and_nothing_else(argument):
    call = FLAGS[argument]
    for value in (True, False):
        for kind in (int, np.bool_, torch.tensor):
            assert_same_bits(call(kind(value)), call(value))
    for bad in ("yes", 2, 1.0, torch.tensor([True]), torch.tensor(1)):
        with pytest.raises(TypeError, match=f"{argument} must be a bool, got"):
            call(bad)


# --- where randomness comes from ---


@one_of_each
def test_a_key_leaves_the_global_generator_alone(sample, key):
    before = torch.get_rng_state()
    first = sample.call(sample.input(), key)
    assert torch.equal(torch.get_rng_state(), before)
    sample.assert_agree(sample.call(sample.input(), key), first)


@one_of_each
def test_manual_seed_governs_where_no_key_is_given(sample):
    x = sample.input()

    def draw():
        return sample.call(x, None)

    torch.manual_seed(5)
    first, second = draw(), draw()
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert_same_bits(draw(), first)
    # as documented, it is key() that draws
    torch.manual_seed(5)
    assert_same_bits(sample.call(x, pysel.key()), first)


@one_of_each
def test_a_generator_governs_and_the_global_one_stays(sample):
    x = sample.input()
    before = torch.get_rng_state()
    first, second = (sample.call(x, None, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    again = sample.call(x, None, generator=torch.Generator().manual_seed(5))
    assert_same_bits(again, first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@one_of_each
def test_key_and_generator_together_are_refused(sample, key):
    with pytest.raises(ValueError, match=f"{sample.op}: give key or generator, not both"):
        sample.call(sample.input(), key, generator=torch.Generator())


@one_of_each
def test_what_is_no_generator_is_refused(sample):
    with pytest.raises(TypeError, match=f"{sample.op}: generator must be a torch.Generator, got int"):
        sample.call(sample.input(), None, generator=5)


@one_of_each
def test_uint64_key_is_the_same_key(sample):
    x = sample.input()
    key = torch.tensor([-5, -(2**63)])
    got = sample.call(x, key.view(torch.uint64))
    assert_same_bits(got, sample.call(x, key))
    sample.assert_agree(sample.reference(x, key.view(torch.uint64)), got)


@one_of_each
@pytest.mark.parametrize("offset", [2**32 - 5, 2**63 - 5, -5, -(2**63), 2**32 - 1], ids=str)
def test_carries_of_the_block_counter_equal_the_reference(sample, offset):
    # the low word of the counter, or all of it, overflows within the input
    x, key = sample.input(), torch.tensor([-1, offset])
    sample.assert_agree(sample.call(x, key), sample.reference(x, key))


@one_of_each
def test_a_strided_key_is_the_same_key(sample, key):
    strided = torch.stack([key, key + 1], dim=1)[:, 0]
    assert_same_bits(sample.call(sample.input(), strided), sample.call(sample.input(), key))


BAD_KEYS = [
    (TypeError, [1, 2], "key must be a Tensor or an int, got list"),
    (TypeError, True, "key must be a Tensor or an int, got bool"),
    (TypeError, torch.tensor([1, 2], dtype=torch.int32), "key must be int64 or uint64, got torch.int32"),
    (TypeError, torch.tensor([1.0, 2.0]), "key must be int64 or uint64, got torch.float32"),
    (ValueError, torch.tensor([1, 2, 3]), r"key must have shape \[2\], got \[3\]"),
    (ValueError, torch.tensor(1), r"key must have shape \[2\], got \[\]"),
    (ValueError, torch.tensor([[1, 2]]), r"key must have shape \[2\], got \[1, 2\]"),
]


@one_of_each
@pytest.mark.parametrize(("error", "bad", "message"), BAD_KEYS, ids=[str(b[1]) for b in BAD_KEYS])
def test_bad_key_is_refused(sample, error, bad, message):
    with pytest.raises(error, match=f"{sample.op}: {message}"):
        sample.call(sample.input(), bad)


@ops
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ([1.0, 2.0], "must be a Tensor, got list"),
        (torch.arange(4), "must be float32, float64, bfloat16 or float16, got torch.int64"),
        (torch.ones(4, dtype=torch.bool), "must be float32, float64, bfloat16 or float16, got torch.bool"),
        (torch.ones(4, dtype=torch.complex64), "must be float32, float64, bfloat16 or float16, got torch.complex64"),
        (torch.ones(4).to_sparse(), "must be a strided tensor, got torch.sparse_coo"),
    ],
    ids=["list", "int64", "bool", "complex64", "sparse"],
)
def test_an_input_of_another_type_is_refused(op, bad, error, key):
    argument = "weights" if op == "weighted_sample" else "logits"
    with pytest.raises(TypeError, match=f"{op}: {argument} {error}"):
        OpSample(op, (4,), {"k": 2} if op == "weighted_sample" else {}).call(bad, key)


@ops
def test_bad_start_is_refused(op, key):
    sample = OpSample(op, (4,), {"k": 2} if op == "weighted_sample" else {})
    for run in (sample.call, sample.reference):
        with pytest.raises(ValueError, match=f"{op}: start must be at least 0, got -1"):
            run(sample.input(), key, start=-1)
    for bad in (1.0, True, "1"):
        with pytest.raises(TypeError, match=f"{op}: start must be an int, got {type(bad).__name__}"):
            sample.call(sample.input(), key, start=bad)
    with pytest.raises(ValueError, match=f"{op}: start must fit into 64 bits, got {2**63}"):
        sample.call(sample.input(), key, start=2**63)


@ops
def test_start_may_be_as_large_as_int64(op, key):
    sample = OpSample(op, (4,), {"k": 2} if op == "weighted_sample" else {})
    x = sample.input()
    for start in (2**62 + 1, 2**63 - 5):
        sample.assert_agree(sample.call(x, key, start=start), sample.reference(x, key, start=start))


# --- torch's machinery ---


@every_sample
@pytest.mark.parametrize("requires_grad", [False, True], ids=["constant", "requires_grad"])
def test_opcheck(sample, requires_grad, key):
    shape = tuple(min(n, 13) for n in sample.shape)
    arguments = sample.arguments | ({"k": 5} if "k" in sample.arguments else {})
    sample = OpSample(sample.op, shape, arguments)
    x = sample.input().clamp_min(1e-3 if "k" in arguments and not arguments.get("log_weights") else -9)
    x.requires_grad_(requires_grad)
    opcheck(getattr(torch.ops.pysel, sample.op).default, sample.raw_arguments(x, key))


@every_sample
def test_meta_and_fake_tensors_have_the_shape_of_results(sample, dtype, key):
    x = sample.input(dtype)
    real = sample.call(x, key)
    meta = sample.call(x.to("meta"), key)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = sample.call(mode.from_tensor(x), mode.from_tensor(key))
    for shapeless in (meta, fake):
        assert shapeless.shape == real.shape
        assert shapeless.dtype == real.dtype
        assert shapeless.stride() == real.stride()
    assert fake.device == real.device


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@one_of_each
def test_compiles_to_one_graph_and_gives_the_same(sample, key, fresh_dynamo):
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x, k: sample.call(x, k), fullgraph=True, backend=counter)
    for i in range(3):
        x, k = sample.input() + i, pysel.fold_in(key, i)
        assert_same_bits(compiled(x, k), sample.call(x, k))
    assert counter.frame_count == 1


@one_of_each
def test_compiles_with_dynamic_shapes(sample, key, fresh_dynamo):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, k: sample.call(x, k), fullgraph=True, backend=counter, dynamic=True)
    for width in (80, 81, 97):
        x = sample.input(shape=(*sample.shape[:-1], width))
        assert_same_bits(compiled(x, key), sample.call(x, key))
    assert counter.frame_count == 1


@one_of_each
def test_a_key_drawn_in_a_compiled_graph_is_the_eager_one(sample, fresh_dynamo):
    x = sample.input()
    compiled = torch.compile(lambda x: (sample.call(x, None), sample.call(x, None)), fullgraph=True)
    torch.manual_seed(3)
    first, second = compiled(x)
    third, _ = compiled(x)
    assert not torch.equal(first, second)  # neither merged into one draw
    assert not torch.equal(first, third)  # nor baked into the graph
    torch.manual_seed(3)
    for got in (first, second, third):
        assert_same_bits(got, sample.call(x, None))


# --- vmap ---


@one_of_each
@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_over_inputs_and_keys_equals_a_loop(sample, in_dim, key, no_vmap_fallback):
    if sample.op == "weighted_sample" and len(sample.shape) > 1:
        sample = OpSample(sample.op, sample.shape[1:], sample.arguments)
    x = torch.stack([sample.input() + i for i in range(3)], dim=in_dim)
    keys = pysel.split(key, 3)
    together = torch.vmap(lambda x, k: sample.call(x, k), in_dims=(in_dim, 0))(x, keys)
    shared = torch.vmap(lambda x: sample.call(x, key), in_dims=in_dim)(x)
    alone = sample.input()
    only_keys = torch.vmap(lambda k: sample.call(alone, k))(keys)
    for i in range(3):
        example = x.select(in_dim, i)
        assert_same_bits(together[i], sample.call(example, keys[i]))
        assert_same_bits(shared[i], sample.call(example, key))
        assert_same_bits(only_keys[i], sample.call(alone, keys[i]))


@one_of_each
def test_nested_vmap_equals_loops(sample, key, no_vmap_fallback):
    if sample.op == "weighted_sample" and len(sample.shape) > 1:
        sample = OpSample(sample.op, sample.shape[1:], sample.arguments)
    keys = pysel.split(key, 6).view(2, 3, 2)
    x = torch.stack([sample.input() + i for i in range(2)])
    inner = torch.vmap(lambda x, k: sample.call(x, k), in_dims=(None, 0))
    got = torch.vmap(inner)(x, keys)
    for i in range(2):
        for j in range(3):
            assert_same_bits(got[i, j], sample.call(x[i], keys[i, j]))


@one_of_each
@pytest.mark.parametrize("own_generator", [False, True])
def test_vmap_obeys_randomness_where_a_key_is_drawn(sample, own_generator):
    if sample.op == "weighted_sample" and len(sample.shape) > 1:
        sample = OpSample(sample.op, sample.shape[1:], sample.arguments)
    x = sample.input()

    def drawn(*nested, times=1):
        """What so many plain calls draw after the other, or one call of the vmaps, the outermost first."""
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(5) if own_generator else None

        def call(x):
            return sample.call(x, None, generator=generator)

        if not nested:
            return [call(x) for _ in range(times)]
        for randomness in reversed(nested):
            call = torch.vmap(call, randomness=randomness)
        return call(x.expand(*[3, 2][: len(nested)], *x.shape))

    one, two, three = drawn(times=3)
    with pytest.raises(RuntimeError, match="randomness"):
        drawn("error")
    assert_same_bits(drawn("same"), torch.stack([one] * 3))
    assert_same_bits(drawn("different"), torch.stack([one, two, three]))
    assert_same_bits(drawn("same", "same"), one.expand(3, 2, *one.shape))
    assert_same_bits(drawn("same", "different"), torch.stack([torch.stack([one, two])] * 3))
    assert_same_bits(drawn("different", "same"), torch.stack([torch.stack([each] * 2) for each in (one, two, three)]))
    assert_same_bits(drawn("different", "different"), torch.stack(drawn(times=6)).unflatten(0, (3, 2)))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_compiled_vmap_draws_what_vmap_draws(randomness):
    mapped = torch.vmap(pysel.gumbel_softmax, randomness=randomness)
    x = torch.zeros(3, 5)
    results = []
    for f in (mapped, torch.compile(mapped, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(5)
        results.append([f(x), f(x)])
    for eager, compiled in zip(*results, strict=True):
        assert_same_bits(compiled, eager)


# --- autocast ---


@pytest.mark.parametrize("op", ["gumbel_softmax", "gumbel_sigmoid"])
def test_autocast_gives_the_dtype_that_softmax_gives(op, dtype, device, key):
    x = torch.randn(3, 5, device=device).to(dtype).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y = getattr(pysel, op)(x, key=key)
        wanted = torch.softmax(x, -1).dtype
    assert y.dtype == wanted
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert gradient.dtype == dtype
    assert_same_bits(y.detach(), getattr(pysel, op)(x.detach().to(wanted), key=key))


def test_vmap_over_no_examples_says_so():
    with pytest.raises(ValueError, match="vmap must have at least one example, got 0"):
        torch.func.vmap(lambda x: torch.ops.pysel.noise(x, "gumbel", False))(torch.zeros(0, 3, dtype=torch.int64))


# --- devices ---

ONES, ZEROS = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64)
AWAY = {"ones": ONES.to("meta"), "zeros": ZEROS.to("meta")}
ELSEWHERE = {
    "usage_penalty: counts must be on the device of scores, meta": lambda: pysel.usage_penalty(
        AWAY["ones"][0], ONES[0], 0.1
    ),
    "usage_update_: selected must be on the device of counts, cpu": lambda: pysel.usage_update_(
        torch.ones(2), AWAY["zeros"][0]
    ),
    "usage_step_: selected must be on the device of counts, cpu": lambda: pysel.usage_step_(
        torch.ones(2), AWAY["zeros"][0], ONES[0], 0.1
    ),
    "usage_select_: first must be on the device of counts, cpu": lambda: pysel.usage_select_(
        torch.ones(2), AWAY["ones"][0], ONES[0], 0.5, 1, 0.1
    ),
    "topk_encode: weight must be on the device of x, cpu": lambda: pysel.topk_encode(ONES, AWAY["ones"], None, 1),
    "sparse_decode: indices must be on the device of values, cpu": lambda: pysel.sparse_decode(
        ONES, AWAY["zeros"], ONES
    ),
    "sparse_decode: weight must be on the device of values, cpu": lambda: pysel.sparse_decode(
        ONES, ZEROS, AWAY["ones"]
    ),
    "factor_counts: indices must be on the device of values, cpu": lambda: pysel.factor_counts(ONES, AWAY["zeros"], 2),
    "factor_scores: tables must be on the device of values, cpu": lambda: pysel.factor_scores(
        ONES, ZEROS, AWAY["ones"][0]
    ),
    "select: groups must be on the device of scores, cpu": lambda: pysel.select(
        ONES[0], 1, groups=AWAY["zeros"][0], quotas=torch.tensor([1])
    ),
    "weighted_sample: quotas must be on the device of weights, cpu": lambda: pysel.weighted_sample(
        ONES[0], 1, groups=ZEROS[0], quotas=AWAY["zeros"][0]
    ),
    "gumbel_softmax: key must be on the device of the input, cpu, or on the CPU": lambda: pysel.gumbel_softmax(
        ONES, key=AWAY["zeros"][0]
    ),
    "gumbel_softmax: tau must be on the device of logits, cpu": lambda: pysel.gumbel_softmax(ONES, AWAY["ones"][0, 0]),
}


@pytest.mark.parametrize("message", ELSEWHERE)
def test_arguments_on_two_devices_are_refused(message):
    with pytest.raises(ValueError, match=f"^{message}, got (cpu|meta)"):
        ELSEWHERE[message]()
