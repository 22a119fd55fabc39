"""What a sampler yields, and states as checkpoints hold them."""

from __future__ import annotations

import io
from typing import Any

import torch


def epochs_of(make: Any, count: int = 5, **options: Any) -> list[list[int]]:
    """Its first epochs."""
    sampler, seen = make(**options), []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        seen.append(list(sampler))
    return seen


def through_a_file(state: Any) -> Any:
    """A state that was saved, and read as untrusted files are."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
