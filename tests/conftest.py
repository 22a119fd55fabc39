"""Fixtures that every test file shares: `device`, `dtype`, `layout`, `key`."""

import pytest
import torch

import pysel
from tests.tensors import DEVICES, DTYPES, LAYOUTS, name


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too (minutes, gigabytes)")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or gigabytes; runs with --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


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
