"""Selection from streams: what to train on as it arrives, and what to hold for training on it again."""

from pysel.selection.stream.online_coreset import OnlineCoreset
from pysel.selection.stream.peaks import Peaks
from pysel.selection.stream.replay import ReplayMemory

__all__ = ["OnlineCoreset", "Peaks", "ReplayMemory"]
