"""Captures any network as one graph and reconstructs it at a given bit assignment. Usable alone:

network = recon.capture(model, images[:2])
config = hwmodel.BitConfig.uniform(network.table.names, hwmodel.Precision(4))
result = recon.reconstruct(network, images, config)
low_bit_model = recon.quantized(network, result.layers).model
"""

from recon.fit.report import BlockReport
from recon.graph.network import Network, Unit, capture
from recon.quantizers.inputs import InputGrid
from recon.quantizers.quantized import QuantizedLayers, quantized
from recon.quantizers.weights import Grid, QuantizedWeight
from recon.reconstruct import Reconstruction, reconstruct
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
    "capture",
    "quantized",
    "reconstruct",
]
