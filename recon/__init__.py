"""Traces any convolutional model and reconstructs it at a given bit assignment. Usable alone:

network = recon.trace(model, (3, 224, 224))
config = hwmodel.BitConfig.uniform(network.table.names, hwmodel.Precision(4))
result = recon.reconstruct(network, images, config)
low_bit_model = recon.quantized(network, result.weights, result.biases).model
"""

from recon.network import Network, Unit, trace
from recon.quantizer import Grid, QuantizedWeight
from recon.reconstruct import Reconstruction, Settings, quantized, reconstruct
from recon.report import BlockReport

__all__ = [
    "BlockReport",
    "Grid",
    "Network",
    "QuantizedWeight",
    "Reconstruction",
    "Settings",
    "Unit",
    "quantized",
    "reconstruct",
    "trace",
]
