"""Methods that choose one subset and keep it: the rivals that any other has to be compared with.

In all of them ``keep_ratio`` is the fraction **kept**, and nothing touches the global random state.
"""

from pysel.selection.static.coverage import FacilityLocation, GraphCut
from pysel.selection.static.familiarity import Familiarity, FamiliaritySelector, awareness, hidden_states
from pysel.selection.static.geometry import Herding, KCentre, KMeans, Moderate, NearestNeighbourThinning, kmeans
from pysel.selection.static.scores import FixedSelector, Full, ScoreSelector, StaticRandom, el2n, grand, margin
from pysel.selection.static.semantic import SemanticDiversity, SemanticScores, semantic_scores
from pysel.selection.static.training_dynamics import AUM, TDDS, DynamicUncertainty, Forgetting

__all__ = [
    "AUM",
    "TDDS",
    "DynamicUncertainty",
    "FacilityLocation",
    "Familiarity",
    "FamiliaritySelector",
    "FixedSelector",
    "Forgetting",
    "Full",
    "GraphCut",
    "Herding",
    "KCentre",
    "KMeans",
    "Moderate",
    "NearestNeighbourThinning",
    "ScoreSelector",
    "SemanticDiversity",
    "SemanticScores",
    "StaticRandom",
    "awareness",
    "el2n",
    "grand",
    "hidden_states",
    "kmeans",
    "margin",
    "semantic_scores",
]
