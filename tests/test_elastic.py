"""Ranks that are killed, and training that goes on with others: see tests/elastic.py."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "tests.elastic", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_six_trainings_that_lose_ranks() -> None:
    assert "6 of 6 right, 9 ranks lost" in run("--runs", "6")


@pytest.mark.long
def test_a_hundred_trainings_that_lose_ranks() -> None:
    assert "100 of 100 right" in run("--runs", "100", "--seed", "1000")
