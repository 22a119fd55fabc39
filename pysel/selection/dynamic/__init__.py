"""Methods that choose a subset anew for each epoch, one a file."""

from pysel.selection.dynamic.infobatch import InfoBatch
from pysel.selection.dynamic.random import DynamicRandom
from pysel.selection.dynamic.representativeness_diversity import DynamicSelector
from pysel.selection.dynamic.unit_interval import to_unit_interval

__all__ = [
    "DynamicRandom",
    "DynamicSelector",
    "InfoBatch",
    "to_unit_interval",
]
