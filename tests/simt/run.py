"""Calls of the interpreted kernels, compared with the native CPU ops.

As a program, for work on one family and for runs under a sanitizer:

    python -m tests.simt.run --family random --only random --orders ascending descending 1 2 3
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time

import torch

import pysel  # noqa: F401  the native ops
from tests import simt
from tests.simt.cases import FAMILIES, Case
from tests.tensors import assert_same_bits, assert_within_ulps

SEEDS = range(1, 21)
ORDERS = ("ascending", "descending", *map(str, SEEDS))
"""Those that every case runs in: by name, or random with this seed."""


def set_order(library: simt.Library, order: str) -> None:
    if order == "ascending":
        library.order(simt.ASCENDING)
    elif order == "descending":
        library.order(simt.DESCENDING)
    else:
        library.order(simt.RANDOM, int(order))


def tensors(value) -> list[torch.Tensor]:
    """Those in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def call(namespace, case: Case) -> list[torch.Tensor] | str:
    """All tensors that came out: results, then arguments, which the op may have written; or what it refused with."""
    args, kwargs = copy.deepcopy((case.args, case.kwargs))
    try:
        result = getattr(namespace, case.op)(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError) as refusal:
        return str(refusal).splitlines()[0]
    return tensors((result, args, kwargs))


def check(case: Case, wanted: list[torch.Tensor] | str) -> None:
    """Calls the interpreted op and compares with what the native one gave."""
    got = call(torch.ops.pysel_simt, case)
    if isinstance(wanted, str) or isinstance(got, str):
        assert got == wanted
        return
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        if case.ulps > 0 and w.dtype.is_floating_point:
            assert_within_ulps(g, w, case.ulps)
        else:
            assert_same_bits(g, w)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variant",
        choices=simt.VARIANTS,
        default="plain",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="STEM", help="build only these of csrc/cuda/*.cu")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tsan", action="store_true", help="only the cases for the thread sanitizer")
    parser.add_argument("--orders", nargs="+", default=["ascending"], help="ascending, descending, or a seed")
    parser.add_argument("--planted", nargs="+", default=[], metavar="BUG", help="instead of cases, planted bugs")
    parser.add_argument("--repaired", nargs="+", default=[], metavar="BUG", help="and those without the bug")
    options = parser.parse_args()

    only = tuple(options.only)
    if simt.VARIANTS[options.variant] and os.environ.get("SIMT_SANITIZED") != options.variant:
        simt.build(options.variant, only)
        words, environment = simt.sanitized(options.variant)
        command = [*words, sys.executable, "-m", "tests.simt.run", *sys.argv[1:]]
        sys.stdout.flush()
        os.execvpe(command[0], command, os.environ | environment)
    torch.set_num_threads(1)

    if options.planted or options.repaired:
        library = simt.load("simt_planted", options.variant, only)
        for order in options.orders:
            set_order(library, order)
            for bugs, repaired in ((options.planted, False), (options.repaired, True)):
                for bug in bugs:
                    getattr(torch.ops.simt_planted, bug)(torch.arange(512.0), repaired)
        return 0

    library = simt.load("pysel_simt", options.variant, only)
    failed = 0
    for case in [case for name in options.family for case in FAMILIES[name]() if case.tsan or not options.tsan]:
        wanted = call(torch.ops.pysel, case)
        threads, began = library.threads_run, time.perf_counter()
        for order in options.orders:
            set_order(library, order)
            try:
                check(case, wanted)
            except Exception as error:
                failed += 1
                print(f"FAILED {order}: {error}")
        seconds = time.perf_counter() - began
        print(f"{seconds:7.3f} s {library.threads_run - threads:9d} threads  {case}", flush=True)
    if failed:
        print(f"{failed} calls failed")
    return int(failed > 0)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Without the interpreter's teardown, at which sanitizers would look into torch.
    os._exit(status)
