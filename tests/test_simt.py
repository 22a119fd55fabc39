"""The CUDA kernels, interpreted on the CPU in many orders, against the native CPU ops; and that bugs would be seen."""

import functools
import re
import subprocess
import sys

import pytest
import torch

import pysel
from tests import simt
from tests.resources import kernels_written
from tests.simt import cases
from tests.simt.run import ORDERS, SEEDS, call, check, set_order

pytestmark = pytest.mark.skipif(not simt.ON_THIS_MACHINE, reason="the interpreter switches stacks on x86-64 only")

CASES = cases.cases()
X = torch.arange(512.0)


@pytest.fixture
def kernels():
    return simt.load("pysel_simt")


@pytest.fixture
def planted():
    simt.load("simt_planted")
    return torch.ops.simt_planted


def planted_in(order):
    set_order(simt.load("simt_planted"), order)


@functools.cache
def runs(variant, *arguments):
    """Output and exit status of tests.simt.run under a sanitizer."""
    try:
        simt.sanitized(variant)
    except simt.UnavailableError as reason:
        pytest.skip(f"no {variant} sanitizer here: {reason}")
    command = [sys.executable, "-m", "tests.simt.run", "--variant", variant, *arguments]
    done = subprocess.run(command, cwd=simt.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout, done.returncode


# --- The kernels ---


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_random_order_of_threads_gives_what_the_native_op_gives(kernels, case):
    wanted = call(torch.ops.pysel, case)
    before = kernels.threads_run
    set_order(kernels, "1")
    check(case, wanted)
    idle = case.op == "usage_update_" and case.args[1].numel() == 0 and case.args[2] == 1  # nothing to count
    if not isinstance(wanted, str) and wanted[0].numel() > 0 and not idle:
        assert kernels.threads_run > before  # the native op was not called by another name


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_order_of_threads_gives_what_the_native_op_gives(kernels, case):
    wanted = call(torch.ops.pysel, case)
    for order in ORDERS:
        set_order(kernels, order)
        check(case, wanted)


@pytest.mark.long
def test_every_kernel_is_launched_by_some_case(kernels):
    written = kernels_written()
    kernels.order(simt.ASCENDING)
    for case in CASES:
        call(torch.ops.pysel_simt, case)
    launched = {
        re.search(r"(\w+)(?:<.*>)?\(", name.replace("(anonymous namespace)", ""))[1] for name in kernels.kernels
    }
    assert launched <= written
    assert written - launched == set()
    assert kernels.threads_run > 1000


@pytest.mark.long
def test_addresses_and_undefined_behaviour():
    output, status = runs("address", "--orders", "ascending", "1")
    assert status == 0, output


@pytest.mark.long
def test_races():
    output, status = runs("thread", "--tsan", "--orders", "1")
    assert status == 0, output


# --- Which path a shape takes ---


@pytest.mark.parametrize(
    ("width", "start", "kernel"),
    [
        *((width, start, "softmax_kernel<float, 1,") for width in (4, 8, 64, 128) for start in (0, 4)),
        (128, 1, "softmax_kernel<float, 8,"),  # 33 quads of noise
        *((width, 0, "softmax_kernel<float, 8,") for width in (256, 1024, 2048, 16_384)),
        (16_384, 2**40 + 2, "softmax_kernel<float, 16,"),
        (32_768, 4, "softmax_kernel<float, 16,"),  # one pass
        (32_768, 3, "max_parts_kernel<float,"),
    ],
)
def test_rows_of_a_power_of_two_fill_their_threads(kernels, width, start, kernel):
    key, tau = pysel.key(1), torch.tensor(1.0)
    set_order(kernels, "ascending")
    kernels.forget_kernels()
    torch.ops.pysel_simt.gumbel_softmax(torch.zeros(2, width), tau, key, -1, False, start, None)
    assert any(kernel in name for name in kernels.kernels)


def test_a_row_of_one_step_is_bounded_by_it(kernels):
    """Few of its elements then exceed the gate; each that does takes an atomic."""
    n, k = 8192, 257  # as many as 256 threads read at once; a k for which a row is one part
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(1)).bfloat16()
    set_order(kernels, "ascending")
    before = kernels.atomics_run
    torch.ops.pysel_simt.topk(x, k)
    assert kernels.atomics_run - before < n


@pytest.mark.parametrize(("n", "k", "selected"), [(1100, 1050, False), (1101, 1050, True), (1101, 1101, False)])
def test_only_the_best_of_a_row_are_sorted_unless_a_block_sorts_it(kernels, n, k, selected):
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(1))
    set_order(kernels, "ascending")
    for call_op in (
        lambda: torch.ops.pysel_simt.topk(x, k),
        lambda: torch.ops.pysel_simt.topk_encode(torch.ones(1, 1), x.t(), None, k, "abs"),
    ):
        kernels.forget_kernels()
        call_op()
        assert any("mark_kernel<" in name for name in kernels.kernels) == selected
        assert any("write_sorted_kernel<" in name for name in kernels.kernels)


def test_race_keys_of_long_rows_are_made_for_few(kernels):
    """Each candidate takes an atomic or more. Were there too many for their room, each element would."""
    n, key = 20_000, pysel.key(1)
    weights = torch.randn(n, generator=torch.Generator().manual_seed(1)).exp() / 100
    set_order(kernels, "ascending")
    for log_weights in (False, True):
        for k in (20, 2000, 10_000, 19_990):
            kernels.forget_kernels()
            before = kernels.atomics_run
            w = weights.log() if log_weights else weights
            torch.ops.pysel_simt.weighted_sample(w, k, False, log_weights, "index", None, None, key, 0, None)
            assert kernels.atomics_run - before < n / 3
            assert any("mark_kernel<" in name and "ByKeys" not in name for name in kernels.kernels)


def test_behind_the_first_tile_a_warp_takes_a_row(kernels):
    """Without bias each of two tiles has 4 KiB of the row: 64 threads, then 32; and 32 that write."""
    weight = torch.randn(2048, 1, generator=torch.Generator().manual_seed(1))
    set_order(kernels, "ascending")
    before = kernels.threads_run
    torch.ops.pysel_simt.topk_encode(torch.ones(1, 1), weight, None, 40, "relu")
    assert kernels.threads_run - before == 64 + 32 + 32


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("again", [0, 1])
def test_counts_take_one_pass_and_no_atomics_of_their_own(kernels, ordered, again):
    """Bits take them: one a word of ascending indices, one an index else."""
    n, m = 4096, 512
    selected = torch.arange(0, n, n // m)
    selected[1] -= again * (n // m)
    if not ordered:
        selected = selected.view(2, -1).t().flatten()  # no neighbours in one word
    set_order(kernels, "ascending")
    before = kernels.atomics_run
    torch.ops.pysel_simt.usage_step_(torch.zeros(n), selected, torch.zeros(n), 0.1, 0.5, "linear", 1)
    marks = n // 32 if ordered else m
    # the bits of what is selected again, that there is such, its two decays and its two additions
    assert kernels.atomics_run - before == marks + again * (1 + 1 + 2 + 2)


def test_candidates_are_counted_once_and_then_left_out(kernels):
    """The bracket holds 911 of these, which share a byte; 71 of them share the next with the cut. To leave later passes
    these alone takes an atomic for each and one a block: 1,657 in all, for 1,581."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).abs() + 1
    set_order(kernels, "ascending")
    before = kernels.atomics_run
    torch.ops.pysel_simt.select(x, 2000, True, None, None, None, None)
    assert 1581 + 71 < kernels.atomics_run - before < 2 * 911


# --- Planted bugs ---


def total_and_least(x):
    return torch.cat([(block.sum() + block.min()).expand(256) for block in x.split(256)])


def sixteenths(x):
    return torch.full_like(x, 16.0)


@pytest.mark.parametrize(("bug", "right"), [("missing_barrier", total_and_least), ("uninitialised", sixteenths)])
def test_some_order_shows_a_wrong_result(planted, bug, right):
    op = getattr(planted, bug)
    wrong = 0
    for seed in SEEDS:
        planted_in(seed)
        wrong += not torch.equal(op(X, False), right(X))
        assert torch.equal(op(X, True), right(X))
    assert wrong == len(SEEDS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bug", ["missing_lane", "divergent_barrier"])
def test_the_interpreter_reports_at_once(planted, bug, order):
    planted_in(order)
    where = rf"{bug}_kernel.*: block \(\d, 0, 0\), thread \(\d+, 0, 0\), .*planted.cu:\d+: __"
    with pytest.raises(RuntimeError, match=where):
        getattr(planted, bug)(X, False)
    getattr(planted, bug)(X, True)


MISUSES = [
    (r"__syncthreads: the block diverges: thread \(3, 0, 0\) has returned", 0),
    (r"__syncthreads: the block diverges: thread .* waits in __syncthreads at .*planted.cu:\d+", 1),
    ("__syncwarp: the mask lacks the calling lane", 2),
    (r"__syncwarp: its mask differs from that of lane \d+", 3),
    ("__shfl_sync: reads lane 16, which is not in the mask", 4),
    ("__shfl_sync: the width is not a power of two", 5),
    (r"__ballot_sync: lane 7 is in the mask, but thread .* has returned", 6),
    (r"the warp diverges: thread .* waits in __(any|ballot)_sync", 7),
    ("__syncwarp: deadlock", 8),
    ("shared: the block's shared memory exceeds 48 KiB", 9),
    (r"__syncwarp: lane 0 is in the mask, but thread .* waits in __syncthreads", 10),
    (r"launch with a block of \(0, 1, 1\) threads", 11),
    (r"launch with a block of \(32, 33, 1\) threads", 12),
    (r"launch with a grid of \(0, 1, 1\) blocks", 13),
    ("launch of a null pointer", 14),
    (r"launch with a grid of \(1, 65536, 1\) blocks", 15),
]


@pytest.mark.parametrize("order", ["ascending", "descending", 1, 2])
@pytest.mark.parametrize(("message", "which"), MISUSES)
def test_misuse_is_reported_and_leaves_nothing_behind(planted, message, which, order):
    planted_in(order)
    with pytest.raises(RuntimeError, match=message):
        planted.misuse(which)
    assert torch.equal(planted.missing_barrier(X, True), total_and_least(X))


SANITIZED = [
    ("address", "shared_overrun", r"AddressSanitizer: use-after-poison"),
    ("address", "global_overrun", r"AddressSanitizer: heap-buffer-overflow"),
    ("address", "misaligned", r"misaligned address .* for type 'const struct float4'"),
    ("thread", "missing_barrier", r"ThreadSanitizer: data race"),
    ("thread", "block_race", r"ThreadSanitizer: data race"),
    ("thread", "missing_fence", r"ThreadSanitizer: data race"),
    ("thread", "warp_race", r"ThreadSanitizer: data race"),
]


@pytest.mark.long
@pytest.mark.parametrize(("variant", "bug", "finding"), SANITIZED)
def test_sanitizers_find_planted_bugs(variant, bug, finding):
    output, status = runs(variant, "--planted", bug)
    assert re.search(finding, output), output
    assert f"{bug}_kernel" in output
    assert "planted.cu:" in output
    assert status != 0


@pytest.mark.long
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_pass_repaired_bugs(variant):
    bugs = dict.fromkeys(bug for _, bug, _ in SANITIZED)
    output, status = runs(variant, "--repaired", *bugs, "--orders", *ORDERS)
    assert status == 0, output


# --- Functions ---


@pytest.mark.parametrize("order", ["ascending", 1])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("operand", [0, 1, 2, 3, 5, 8, 13, 16, 21, 31])
def test_warp_functions(planted, operand, width, order):
    """As CUDA's programming guide describes them."""
    planted_in(order)
    x = [17 * lane % 32 + 3 for lane in range(32)]
    out = torch.zeros(14, 32, dtype=torch.int64)
    planted.warp_functions(torch.tensor(x), operand, width, out)

    def begin(lane):
        return lane // width * width

    def inside(lane, source):
        return x[source] if begin(lane) <= source < begin(lane) + width else x[lane]

    def up_to_the_end(lane, source):  # of the own segment; those before it may be read
        return x[source] if source < begin(lane) + width else x[lane]

    def everyone(value):
        return [int(value)] * 32

    odd = [value % 2 for value in x]
    wanted = [
        [x[begin(lane) + (operand + lane) % width] for lane in range(32)],
        [inside(lane, lane - operand) for lane in range(32)],
        [inside(lane, lane + operand) for lane in range(32)],
        [up_to_the_end(lane, lane ^ operand) for lane in range(32)],
        everyone(sum(bit << lane for lane, bit in enumerate(odd))),
        everyone(operand in x),
        everyone(max(x) < operand),
        [sum((x[other] % 5 == x[lane] % 5) << other for other in range(32)) for lane in range(32)],
        everyone(sum(x)),
        everyone(min(x)),
        everyone(max(x)),
        everyone(sum(odd)),
        everyone(operand in x),
        everyone(max(x) < operand),
    ]
    assert out.tolist() == wanted
