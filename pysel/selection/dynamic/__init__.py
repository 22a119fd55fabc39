"""Methods that choose a subset anew for each epoch, one a file."""

from pysel.selection.dynamic.batch_loss import BatchLossScores
from pysel.selection.dynamic.diverse_batch import diverse_batch
from pysel.selection.dynamic.infobatch import InfoBatch
from pysel.selection.dynamic.orderdp import OrderDP
from pysel.selection.dynamic.random import DynamicRandom
from pysel.selection.dynamic.rcap import RCAP
from pysel.selection.dynamic.representativeness_diversity import DynamicSelector
from pysel.selection.dynamic.seta import SeTa
from pysel.selection.dynamic.ucb import UCB, EpsilonGreedy
from pysel.selection.dynamic.unit_interval import to_unit_interval

__all__ = [
    "RCAP",
    "UCB",
    "BatchLossScores",
    "DynamicRandom",
    "DynamicSelector",
    "EpsilonGreedy",
    "InfoBatch",
    "OrderDP",
    "SeTa",
    "diverse_batch",
    "to_unit_interval",
]
