"""Lack of memory looks as it does from torch's own ops. `python -m tests.test_out_of_memory` runs into it."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pysel

ROOT = Path(__file__).parent.parent
OPS = torch.ops.pysel
N = 1 << 28  # elements: more than there is room for, and as an expanded tensor none at all
ZEROS, WHOLE = torch.zeros(1).expand(N), torch.zeros(1, dtype=torch.int64).expand(N)
ONE, FIRST = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)
COUNTS = torch.ones(5)

TORCH_TELLS = {  # results, and contiguous copies of arguments
    "torch itself": lambda: ZEROS.contiguous(),
    "gumbel_softmax": lambda: pysel.gumbel_softmax(ZEROS, key=0),
    "gumbel_sigmoid": lambda: pysel.gumbel_sigmoid(ZEROS, key=0),
    "gumbel_argmax": lambda: pysel.gumbel_argmax(ZEROS, key=0),
    "weighted_sample": lambda: pysel.weighted_sample(ZEROS, 5, log_weights=True, key=0),
    "weighted_sample with replacement": lambda: pysel.weighted_sample(torch.ones(4), N, True, key=0),
    "select": lambda: pysel.select(ZEROS, 5),
    "topk": lambda: pysel.topk(ZEROS, 5),
    "permutation": lambda: pysel.permutation(N, key=0),
    "noise": lambda: OPS.noise(WHOLE, "gumbel", False),
    "split": lambda: pysel.split(pysel.key(0), N),
    "topk_encode": lambda: pysel.topk_encode(ZEROS[:, None], ONE, None, 1),
    "sparse_decode": lambda: pysel.sparse_decode(ONE, FIRST, ZEROS[None]),
    "sddmm": lambda: OPS.sddmm(WHOLE[:, None], ONE, ZEROS[:, None]),
    "sparse_decode_backward": lambda: OPS.sparse_decode_backward(ZEROS[None], ONE, FIRST, ZEROS[None]),
    "factor_counts": lambda: pysel.factor_counts(ONE, FIRST, N),
    "factor_scores": lambda: pysel.factor_scores(ONE, FIRST, ZEROS),
    "usage_penalty": lambda: pysel.usage_penalty(ZEROS, ZEROS, 0.1),
    "usage_update_": lambda: pysel.usage_update_(COUNTS, WHOLE),
    "usage_step_": lambda: pysel.usage_step_(COUNTS, WHOLE, COUNTS, 0.1, 0.5),
}
PYSEL_TELLS = {  # what an op takes for itself
    "spmm_t": lambda: OPS.spmm_t(ONE, FIRST, torch.ones(1, 0), N),
    "factor_counts in threads": lambda: pysel.factor_counts(ONE, FIRST, 6 << 20),
}


def run_into_it():
    pysel.topk(torch.zeros(300_000), 3)  # what torch takes at its first call is there
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (80 << 20),) * 2)
    for name, call in (TORCH_TELLS | PYSEL_TELLS).items():
        try:
            call()
            told = ["no error"]
        except BaseException as e:
            told = [type(e).__name__, *map(str, e.args)]
        print(json.dumps([name, told]))
    print(json.dumps(["counts", COUNTS.tolist()]))


@pytest.fixture(scope="module")
def told():
    command = [sys.executable, "-m", "tests.test_out_of_memory"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return dict(map(json.loads, printed.splitlines()))


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="this torch does not tell an extension what failed")
@pytest.mark.parametrize("call", [*TORCH_TELLS, *PYSEL_TELLS])
def test_lack_of_memory_is_torchs_error(call, told):
    # accelerate.utils.find_executable_batch_size goes by this: a RuntimeError with one argument that has these words
    kind, *arguments = told[call]
    assert kind == "RuntimeError"
    assert len(arguments) == 1
    assert "DefaultCPUAllocator: can't allocate memory" in arguments[0]
    assert (call in PYSEL_TELLS) or "you tried to allocate" in arguments[0]


def test_counts_are_then_unchanged(told):
    assert told["counts"] == [1.0] * 5


def test_a_size_that_no_memory_has_is_torchs_error_too():
    huge = torch.zeros(1).expand(2**62)
    for call in (lambda: pysel.gumbel_softmax(huge, key=0), lambda: torch.zeros(2**62)):
        with pytest.raises(RuntimeError, match="Storage size calculation overflowed"):
            call()


if __name__ == "__main__":
    run_into_it()
