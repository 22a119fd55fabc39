"""csrc/cpu/memory.cpp: large results lie in huge pages unless that is switched off, and ops keep no memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IS_ADVISED = """
import re, torch, pysel
out = pysel.gumbel_softmax(torch.zeros(64, 1 << 18), key=0)  # 64 MiB
areas = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())[1:]
within = out.data_ptr() + (32 << 20)
(area,) = [a for a in areas if int(a.split("-")[0], 16) <= within < int(re.split("[- ]", a)[1], 16)]
print("hg" in re.search("VmFlags:(.*)", area)[1].split())
"""
KEPT = """
import ctypes, re, torch, pysel
def resident():
    ctypes.CDLL(None).malloc_trim(0)  # the C library keeps what it was given back
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
weights, scores = torch.rand(8_000_000) + 1e-3, torch.randn(8_000_000)
of = torch.arange(8_000_000, dtype=torch.int32) % 100
def work(n):
    for options in ({}, {"replacement": True}, {"order": "shuffled"}):
        pysel.weighted_sample(weights[:n], n // 2, **options)
    pysel.select(scores[:n], n // 3)
    pysel.select(scores[:n], n // 10, groups=of[:n], quotas=torch.full((100,), n // 1000))
    pysel.topk_encode(scores[: n // 10].view(-1, 400), scores[:n].view(-1, 400), None, 9)
work(80_000)
before = resident()
for _ in range(3):
    work(8_000_000)
print(resident() - before)
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no huge pages")
@pytest.mark.parametrize(("given", "advised"), [("1", "True"), ("0", "False"), ("", "True")])
def test_huge_pages_are_asked_for_unless_switched_off(given, advised):
    done = run(IS_ADVISED, PYSEL_MADVISE_HUGEPAGE=given, THP_MEM_ALLOC_ENABLE="0")
    assert done.stdout.strip() == advised, done.stderr


def test_another_value_is_refused():
    done = run(IS_ADVISED, PYSEL_MADVISE_HUGEPAGE="yes")
    assert "PYSEL_MADVISE_HUGEPAGE must be 0 or 1, got yes" in done.stderr


def test_ops_keep_no_memory_between_calls():
    done = run(KEPT)
    assert int(done.stdout) < 24, done.stderr  # MiB, where one result has 30
