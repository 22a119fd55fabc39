"""What a process may set for itself shows neither in results nor in messages."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pysel
from tests.tensors import assert_same_bits

ROOT = Path(__file__).parent.parent
OPS = torch.ops.pysel


# --- flushing of subnormals ---


@pytest.fixture
def flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    torch.set_flush_denormal(False)
    yield lambda: torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)


def assert_flushing_changes_nothing(all_outputs, flush):
    plain = all_outputs()
    flush()
    assert float(torch.tensor(2.0**-126) / 2) == 0  # it flushes now
    flushed = all_outputs()
    torch.set_flush_denormal(False)
    for a, b in zip(plain, flushed, strict=True):
        assert_same_bits(b, a)
    return plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_flush_denormal_changes_nothing(dtype, key, flushed):
    tiny = torch.finfo(dtype).smallest_normal
    subnormal = torch.linspace(0, tiny, 101, dtype=torch.float64).to(dtype)
    # differences that tau turns into subnormal probabilities; gradients that are subnormal
    cold = torch.linspace(0, -1, 5000, dtype=torch.float64).mul(110).to(dtype).requires_grad_()

    def all_outputs():
        y = pysel.gumbel_softmax(cold, key=key)
        gates = pysel.gumbel_sigmoid(cold, key=key)
        return [
            pysel.weighted_sample(subnormal, 100, key=key),
            pysel.weighted_sample(subnormal, 1000, True, key=key),
            y.detach(),
            *torch.autograd.grad(y, cold, torch.full_like(y, tiny), retain_graph=True),
            *torch.autograd.grad(y.sum() * 0 + (y * y).sum(), cold),
            gates.detach(),
            *torch.autograd.grad(gates, cold, torch.full_like(gates, float(tiny))),
        ]

    plain = assert_flushing_changes_nothing(all_outputs, flushed)
    assert sorted(plain[0].tolist()) == list(range(1, 101))  # subnormal weights count


@functools.cache  # made before anything is flushed
def subnormals(n, dtype=torch.float32):
    """The smallest numbers of either sign, in no order."""
    x = torch.linspace(-1, 1, n, dtype=torch.float64)[torch.randperm(n, generator=torch.Generator().manual_seed(n))]
    return (x * torch.finfo(dtype).smallest_normal).to(dtype)


def usage(op, n, *arguments):
    counts = subnormals(n).abs()
    return [getattr(pysel, op)(counts, *arguments), counts]


# From n subnormal numbers, an op's results. Each is of one chunk, or of many that are shared out among threads.
SUBNORMAL = {
    "usage_penalty log": lambda n: [pysel.usage_penalty(subnormals(n), subnormals(n), 0.5)],
    "usage_penalty linear": lambda n: [pysel.usage_penalty(subnormals(n), torch.zeros(n), 0.5, "linear")],
    "usage_penalty exp": lambda n: [pysel.usage_penalty(torch.full((n,), 1e-30), torch.ones(n), 20.0, "exp")],
    "usage_penalty rate": lambda n: [pysel.usage_penalty(subnormals(n), subnormals(n), 0.5, "rate", 3)],
    "usage_penalty float64": lambda n: [pysel.usage_penalty(subnormals(n, torch.float64), torch.zeros(n), 0.5)],
    "usage_update_": lambda n: usage("usage_update_", n, torch.arange(n // 2), 0.5),
    "usage_step_": lambda n: usage("usage_step_", n, torch.arange(n // 2), subnormals(n), 0.5, 0.5, "linear"),
    "usage_select_": lambda n: usage("usage_select_", n, subnormals(n), subnormals(n).roll(1), 0.3, n // 2, 0.5),
    "select": lambda n: [pysel.select(subnormals(n), n // 2)],
    "topk": lambda n: pysel.topk(subnormals(n), n // 2),
    "gumbel_argmax": lambda n: [pysel.gumbel_argmax(subnormals(n)[:, None].expand(n, 3), key=1)],
    "sparse_decode": lambda n: [pysel.sparse_decode(subnormals(n)[:, None], rows(n), torch.ones(n, 1))],
    "sddmm": lambda n: [OPS.sddmm(rows(n), subnormals(n)[:, None], torch.ones(n, 1))],
    "spmm_t": lambda n: [OPS.spmm_t(subnormals(n)[:, None], rows(n), torch.ones(n, 1), n)],
    "sparse_decode_backward": lambda n: OPS.sparse_decode_backward(
        torch.full((n, 1), 0.5), subnormals(n)[:, None], rows(n), subnormals(n)[:, None]
    ),
    "factor_counts": lambda n: [pysel.factor_counts(subnormals(n)[:, None], rows(n), n)],
    "factor_scores": lambda n: [pysel.factor_scores(torch.ones(n, 1), rows(n), subnormals(n))],
    "factor_scores weighted": lambda n: [
        pysel.factor_scores(subnormals(n)[:, None], rows(n), torch.ones(n), reduce="mean", weighted=True)
    ],
    "prepare": lambda n: OPS.prepare(subnormals(n).abs()),
    "weighted_sample prepared": lambda n: [pysel.weighted_sample(pysel.prepare(subnormals(n).abs()), 9, True, key=1)],
    "race_keys": lambda n: [OPS.race_keys(subnormals(n).abs(), False, pysel.key(1), 0)],
    "fixed_weights": lambda n: [OPS.fixed_weights(subnormals(n).abs(), False, 2.0**-126, n)],
}


def rows(n):
    return torch.arange(n)[:, None]


@pytest.mark.parametrize("n", [8, 40_000])
@pytest.mark.parametrize("op", SUBNORMAL)
def test_flush_denormal_changes_nothing_whatever_the_size(op, n, flushed):
    assert bool((subnormals(n) != 0).any())
    assert_flushing_changes_nothing(lambda: [t.detach() for t in SUBNORMAL[op](n)], flushed)


def test_flush_denormal_stays_as_it_was(flushed):
    flushed()
    pysel.usage_penalty(torch.ones(4), torch.ones(4), 0.5)
    with pytest.raises(ValueError, match="gamma"):
        pysel.usage_penalty(torch.ones(4), torch.ones(4), -1.0)
    assert float(torch.tensor(2.0**-126) / 2) == 0


# --- the locale ---

GROUPED = """
#include <locale>
struct Grouped : std::numpunct<char> {
  char do_thousands_sep() const override { return '.'; }
  char do_decimal_point() const override { return ','; }
  std::string do_grouping() const override { return "\\3"; }
};
extern "C" void group_digits() { std::locale::global(std::locale(std::locale::classic(), new Grouped)); }
"""

REFUSED = """
import ctypes, sys, torch, pysel
ctypes.CDLL(sys.argv[1]).group_digits()
for call in (
    lambda: pysel.topk(torch.zeros(1, 1_000_000), 1_000_001),
    lambda: pysel.usage_penalty(torch.zeros(2, 1234), torch.zeros(1234), 0.1),
    lambda: pysel.usage_penalty(torch.zeros(2), torch.zeros(2), -0.5),
    lambda: pysel.usage_update_(torch.zeros(2), torch.tensor([123_456])),
):
    try:
        call()
    except (ValueError, IndexError) as error:
        print(error)
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_messages_are_the_same_in_every_locale(tmp_path):
    source, library = tmp_path / "locale.cpp", tmp_path / "liblocale.so"
    source.write_text(GROUPED)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    command = [sys.executable, "-c", REFUSED, library]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == [
        "topk: k must be between 0 and 1000000, got 1000001",
        "usage_penalty: scores must have the shape of counts, [1234], got [2, 1234]",
        "usage_penalty: gamma must be finite and at least 0, got -0.5",
        "usage_update_: selected must be between 0 and 1, got 123456",
    ]
