"""Batched matrix estimation: pure functions on tensors, with certificates. Imports only torch."""

from .estimate import Estimate
from .images import approximate_rank, reconstruct, straight_through
from .nuclear import nuclear_norm
from .soft_impute import soft_impute
from .usvt import usvt

__all__ = [
    "Estimate",
    "approximate_rank",
    "nuclear_norm",
    "reconstruct",
    "soft_impute",
    "straight_through",
    "usvt",
]
