"""Methods that choose a subset anew for each epoch, one a file."""

from pysel.selection.dynamic.factors import FactorTables, factor_tables, to_unit_interval
from pysel.selection.dynamic.infobatch import InfoBatch
from pysel.selection.dynamic.random import DynamicRandom
from pysel.selection.dynamic.representativeness_diversity import DynamicSelector

__all__ = [
    "DynamicRandom",
    "DynamicSelector",
    "FactorTables",
    "InfoBatch",
    "factor_tables",
    "to_unit_interval",
]
