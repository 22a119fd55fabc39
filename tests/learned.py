"""ASSS for tests of its game."""

from __future__ import annotations

from typing import Any

from pysel.selection import ASSS


def best_only(keep_ratio: Any, **options: Any) -> ASSS:
    """The subset is that of the largest logits, and wrong labels have had the time to leave."""
    return ASSS(keep_ratio, **{"pool": None, "normalise": False, "epochs": 20, **options})
