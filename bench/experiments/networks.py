"""The networks that are trained: features, and a linear layer on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.experiments.scenarios import Task


class Residual(nn.Module):
    """x + f(x): blocks that can be compared with each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Convolved(nn.Module):
    """A block of a residual network for pictures: half the size, if it has a stride of 2."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        shorter = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shorter = nn.Identity() if (before, stride) == (after, 1) else shorter

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.shorter(x))


def make_network(task: Task, hidden: int, seed: int) -> nn.Sequential:
    """A function of the seed, where the task's samples are.

    A perceptron with one hidden layer; for pictures with colours a residual network of seven convolutions in a row, the
    last of ``hidden`` channels.
    """
    with torch.random.fork_rng(devices=[]):  # the layers draw from the global generator: give it back as it was
        torch.manual_seed(seed)
        if task.train_x.dim() == 2:
            features = [nn.Linear(task.train_x.size(1), hidden), nn.ReLU()]
        else:
            widths = (hidden // 4, hidden // 2, hidden)
            first = nn.Conv2d(task.train_x.size(1), widths[0], 3, 1, 1)
            blocks = [Convolved(widths[max(0, i - 1)], widths[i], 1 if i == 0 else 2) for i in range(3)]
            features = [first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*features, nn.Linear(hidden, task.num_classes)).to(task.train_x.device)
