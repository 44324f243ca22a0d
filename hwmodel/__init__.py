"""What a layer is, and what a choice of bits costs. numpy and the standard library only."""

from hwmodel.cost import CostTable
from hwmodel.errors import BudgetError, InputError, MpsearchError
from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.precision import FLOAT_BITS, WEIGHT_BITS, BitConfig, Precision

__all__ = [
    "FLOAT_BITS",
    "WEIGHT_BITS",
    "BitConfig",
    "BudgetError",
    "CostTable",
    "InputError",
    "LayerSpec",
    "LayerTable",
    "MpsearchError",
    "Precision",
]
