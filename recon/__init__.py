"""Traces any convolutional model and reconstructs it at a given bit assignment. Usable alone:

network = recon.trace(model, (3, 224, 224))
config = hwmodel.BitConfig.uniform(network.table.names, hwmodel.Precision(4))
result = recon.reconstruct(network, images, config)
low_bit_model = recon.quantized(network, result.layers).model
"""

from recon.input_quantizer import InputGrid
from recon.network import Network, Unit, trace
from recon.quantized import QuantizedLayers, quantized
from recon.quantizer import Grid, QuantizedWeight
from recon.reconstruct import Reconstruction, reconstruct
from recon.report import BlockReport
from recon.settings import Settings

__all__ = [
    "BlockReport",
    "Grid",
    "InputGrid",
    "Network",
    "QuantizedLayers",
    "QuantizedWeight",
    "Reconstruction",
    "Settings",
    "Unit",
    "quantized",
    "reconstruct",
    "trace",
]
