"""Selectors that are trained together with the task."""

from pysel.selection.learned.asss import ASSS, performance_retention_rate
from pysel.selection.learned.game import information
from pysel.selection.learned.gate import gumbel_khot
from pysel.selection.learned.importance import Importances

__all__ = ["ASSS", "Importances", "gumbel_khot", "information", "performance_retention_rate"]
