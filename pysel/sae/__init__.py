"""Sparse autoencoders: the factors of a data set."""

from pysel.sae.factors import FactorTables, factor_tables
from pysel.sae.formats import load_sae, save_sae
from pysel.sae.model import SAEOutput, TopKSAE, geometric_median, normal
from pysel.sae.rows import Rows
from pysel.sae.train import SAEReport, evaluate_sae, train_sae

__all__ = [
    "FactorTables",
    "Rows",
    "SAEOutput",
    "SAEReport",
    "TopKSAE",
    "evaluate_sae",
    "factor_tables",
    "geometric_median",
    "load_sae",
    "normal",
    "save_sae",
    "train_sae",
]
