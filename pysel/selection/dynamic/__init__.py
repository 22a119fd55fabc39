"""Methods that choose a subset anew for each epoch, one a file."""

from pysel.selection.dynamic.representativeness_diversity import (
    DynamicSelector,
    FactorTables,
    factor_tables,
    to_unit_interval,
)

__all__ = ["DynamicSelector", "FactorTables", "factor_tables", "to_unit_interval"]
