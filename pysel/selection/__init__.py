"""Data selection: two systems, the baselines to hold them against, and their parts.

Every method is a `Selector` and plugs into `pysel.SelectionSampler`. Wherever features, scores, labels or indices are
taken, a tensor, a numpy array, a pandas column or a list of numbers will do, of any real dtype, and nothing of it is
kept but the features that `DynamicSelector.explain` reads from.
"""

from pysel.sae import FactorTables, factor_tables
from pysel.selection import features, schedule, stream
from pysel.selection.bitmap import Bitmap
from pysel.selection.dynamic import (
    RCAP,
    UCB,
    BatchLossScores,
    DynamicRandom,
    DynamicSelector,
    EpsilonGreedy,
    InfoBatch,
    OrderDP,
    SeTa,
    diverse_batch,
    to_unit_interval,
)
from pysel.selection.learned import ASSS, MetaWeighter, class_families, low_loss, performance_retention_rate
from pysel.selection.mining import Centres, Mined, class_centres, mine
from pysel.selection.nmtune import nmtune_loss
from pysel.selection.protocol import Selector, StreamSelector, Weighter
from pysel.selection.static import (
    AUM,
    TDDS,
    DynamicUncertainty,
    FacilityLocation,
    Familiarity,
    FamiliaritySelector,
    FixedSelector,
    Forgetting,
    Full,
    GraphCut,
    Herding,
    KCentre,
    KMeans,
    Moderate,
    NearestNeighbourThinning,
    ScoreSelector,
    SemanticDiversity,
    SemanticScores,
    StaticRandom,
    awareness,
    el2n,
    grand,
    hidden_states,
    kmeans,
    margin,
    semantic_scores,
)
from pysel.selection.subset import Strata, quotas, subset_size

# names of old, for one release
DynamicRandomSelector = DynamicRandom
FullSelector = Full
KMeansSelector = KMeans
StaticRandomSelector = StaticRandom

__all__ = [
    "ASSS",
    "AUM",
    "RCAP",
    "TDDS",
    "UCB",
    "BatchLossScores",
    "Bitmap",
    "Centres",
    "DynamicRandom",
    "DynamicRandomSelector",
    "DynamicSelector",
    "DynamicUncertainty",
    "EpsilonGreedy",
    "FacilityLocation",
    "FactorTables",
    "Familiarity",
    "FamiliaritySelector",
    "FixedSelector",
    "Forgetting",
    "Full",
    "FullSelector",
    "GraphCut",
    "Herding",
    "InfoBatch",
    "KCentre",
    "KMeans",
    "KMeansSelector",
    "MetaWeighter",
    "Mined",
    "Moderate",
    "NearestNeighbourThinning",
    "OrderDP",
    "ScoreSelector",
    "SeTa",
    "Selector",
    "SemanticDiversity",
    "SemanticScores",
    "StaticRandom",
    "StaticRandomSelector",
    "Strata",
    "StreamSelector",
    "Weighter",
    "awareness",
    "class_centres",
    "class_families",
    "diverse_batch",
    "el2n",
    "factor_tables",
    "features",
    "grand",
    "hidden_states",
    "kmeans",
    "low_loss",
    "margin",
    "mine",
    "nmtune_loss",
    "performance_retention_rate",
    "quotas",
    "schedule",
    "semantic_scores",
    "stream",
    "subset_size",
    "to_unit_interval",
]
