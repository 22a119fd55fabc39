"""Samplers for ``torch.utils.data.DataLoader`` over the ops: weighted draws, and a selector's subset each epoch."""

from pysel.samplers.batch import BatchSampler
from pysel.samplers.log import SelectionLog
from pysel.samplers.selection import SelectionSampler, Selects
from pysel.samplers.weighted import WeightedSampler

__all__ = ["BatchSampler", "SelectionLog", "SelectionSampler", "Selects", "WeightedSampler"]
