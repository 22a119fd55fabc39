"""Fixtures that every test file shares: `device`, `dtype`, `layout`, `key`."""

import shutil

import pytest
import torch

import pysel
from tests.browser import Browser
from tests.tensors import DEVICES, DTYPES, LAYOUTS, name

TIERS = {
    "long": "the CUDA kernels in all orders and under sanitizers, all frameworks: ten minutes, make test-all",
    "slow": "minutes or gigabytes for one promise",
}


def pytest_addoption(parser):
    for tier, what in TIERS.items():
        parser.addoption(f"--{tier}", action="store_true", help=f"run the tests marked {tier}, too ({what})")


def pytest_configure(config):
    for tier, what in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {what}; runs with --{tier}")


def pytest_collection_modifyitems(config, items):
    left_out = [tier for tier in TIERS if not config.getoption(f"--{tier}")]
    skipped = [item for item in items if any(map(item.get_closest_marker, left_out))]
    items[:] = [item for item in items if item not in set(skipped)]
    config.hook.pytest_deselected(items=skipped)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=name)
def dtype(request):
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def key():
    return pysel.key(20_240_601)


@pytest.fixture
def threads():
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """Steps as small as those of tests are faster on one thread, on a busy machine by far."""
    threads(1)


@pytest.fixture
def no_vmap_fallback():
    """Without it an op that lacks a batching rule raises, instead of running slowly with a warning."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A real browser, see tests/browser.py."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
