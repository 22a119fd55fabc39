"""Selectors that are trained together with the task."""

from pysel.selection.learned.asss import ASSS, performance_retention_rate
from pysel.selection.learned.game import information
from pysel.selection.learned.gate import gumbel_khot
from pysel.selection.learned.importance import Importances
from pysel.selection.learned.lookahead import lookahead, low_loss
from pysel.selection.learned.meta_weights import MetaWeighter, class_families

__all__ = [
    "ASSS",
    "Importances",
    "MetaWeighter",
    "class_families",
    "gumbel_khot",
    "information",
    "lookahead",
    "low_loss",
    "performance_retention_rate",
]
