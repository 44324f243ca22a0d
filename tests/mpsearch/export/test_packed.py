"""The packed file: its size is what was predicted, and what it gives back is what was written."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from nets import NETS, Tied, sequence
from safetensors import safe_open
from torch import nn
from torch.utils._pytree import tree_leaves

import mpsearch
from hwmodel import WEIGHT_BITS, BitConfig, InputError, Precision
from hwmodel.size import cost_table
from mpsearch.export.packed import fill_packed, layout_of, load_packed, others, save_packed
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded, quantized

FAMILIES = ("squeezenet1_1", "shufflenet_v2_x0_5")
SIDE = 64


def rounded(network: Network, batch: Any, abits: tuple[int, ...]) -> tuple[BitConfig, QuantizedLayers]:
    """All weight bits in turn, with all of `abits`."""
    choices = [Precision(*bits) for bits in itertools.product(WEIGHT_BITS, abits)]
    config = BitConfig(network.table.names, tuple(choices[k % len(choices)] for k in range(len(network.table))))
    layers = plainly_rounded(network, network.leaves(Samples.of(batch)), config)
    return layers.config(network.table.names), layers


def simulated(network: Network, layers: QuantizedLayers) -> Network:
    """The network with these layers, and all else in half precision as it is stored."""
    result = quantized(network, layers)
    for tensor in others(result).values():
        if tensor.half().isfinite().equal(tensor.isfinite()):
            tensor.copy_(tensor.half())
    return result


def same(ours: nn.Module, theirs: nn.Module, batch: Any) -> None:
    args, kwargs = Samples.of(batch).call
    with torch.inference_mode():
        pairs = zip(tree_leaves(ours(*args, **kwargs)), tree_leaves(theirs(*args, **kwargs)), strict=True)
        for ours_out, theirs_out in pairs:
            assert torch.equal(ours_out, theirs_out)
            assert torch.isfinite(ours_out).all()


@pytest.mark.parametrize("abits", [(32,), (8, 4)], ids=["weights", "weights-and-inputs"])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_layer_and_of_input_comes_back(name: str, abits: tuple[int, ...], tmp_path: Path) -> None:
    make, data = NETS[name]
    torch.manual_seed(0)
    model, batch, path = make().eval(), data(), tmp_path / "model.safetensors"
    network = capture(model, batch, name)
    config, layers = rounded(network, batch, abits)
    written = save_packed(path, network, "somewhere/net.py:make", layers)
    layout = layout_of(network, "net.py:make", abits != (32,))
    assert path.stat().st_size == written == layout.file_bytes(config)
    expected = simulated(network, layers)
    other = make()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    same(load_packed(path, other), expected.model, batch)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    same(fill_packed(path, network).model, expected.model, batch)


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_is_built_by_name(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10).eval()
    reference = f"torchvision:{name}?num_classes=10"
    images = torch.randn(2, 3, SIDE, SIDE)
    network = capture(model, images, reference)
    choices = [Precision(w, 32) for w in WEIGHT_BITS]
    config, layers = rounded(network, images, (32,))
    path = tmp_path / "model.safetensors"
    written = save_packed(path, network, reference, layers)
    costs = cost_table(network.table, choices, layout_of(network, reference).fixed_bytes())
    columns = [choices.index(precision) for precision in config.precisions]
    assert written == costs.fixed_bytes + int(costs.weight_bytes[np.arange(len(network.table)), columns].sum())
    same(mpsearch.load_packed(path), simulated(network, layers).model, images)


def test_every_uniform_file_has_the_predicted_size(tmp_path: Path) -> None:
    network = capture(sequence().eval(), torch.zeros(2, 7, 6))
    layout = layout_of(network, "net.py:sequence", True)
    for bits in WEIGHT_BITS:
        config = BitConfig.uniform(network.table.names, Precision(bits, bits))
        layers = plainly_rounded(network, (torch.randn(4, 7, 6),), config)
        path = tmp_path / f"{bits}.safetensors"
        assert save_packed(path, network, "net.py:sequence", layers) == layout.file_bytes(config)
        assert path.stat().st_size == layout.file_bytes(config)


def test_the_place_of_the_code_changes_nothing(tmp_path: Path) -> None:
    network = capture(sequence().eval(), torch.zeros(2, 7, 6))
    config = BitConfig.uniform(network.table.names, Precision(4))
    layers = plainly_rounded(network, (torch.zeros(2, 7, 6),), config)
    contents = set()
    for reference in ("net.py:make", "/home/someone/secret/net.py:make", r"C:\someone\net.py:make", "../net.py:make"):
        save_packed(tmp_path / "m.safetensors", network, reference, layers)
        contents.add((tmp_path / "m.safetensors").read_bytes())
    assert len(contents) == 1


def test_what_no_call_reads_is_not_stored(tmp_path: Path) -> None:
    network = capture(Tied().eval(), torch.zeros(2, 5, dtype=torch.long))
    layers = plainly_rounded(
        network,
        (torch.zeros(2, 5, dtype=torch.long),),
        BitConfig.uniform(network.table.names, Precision(4)),
    )
    save_packed(tmp_path / "m.safetensors", network, "Tied", layers)
    with safe_open(tmp_path / "m.safetensors", "np") as file:  # any reader of safetensors reads it
        stored = set(file.keys())
        assert np.isneginf(file.get_tensor("other.mask")).sum() == 10
    assert stored == {"biases", "codes", "scales", "zero_points", "other.mask"}


class Large(nn.Module):
    """A buffer beyond half precision, a constant below it, and an integer buffer."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("shift", torch.tensor([1e6, -3e38, 0.0, 1.0]))
        self.register_buffer("order", torch.arange(first, first + 4) % 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) + self.shift + torch.tensor(1e-12))[:, self.order]


def test_what_half_precision_cannot_hold_is_stored_in_single(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    network = capture(Large().eval(), x)
    _, layers = rounded(network, x, (8,))
    path = tmp_path / "m.safetensors"
    assert save_packed(path, network, "Large", layers) == layout_of(network, "Large", True).file_bytes(
        layers.config(network.table.names)
    )
    same(load_packed(path, Large()), simulated(network, layers).model, x)
    with pytest.raises(InputError, match="integer buffers"):
        load_packed(path, Large(first=1))


class Named(nn.Module):
    """Layers whose names have spaces, per cent signs and colons."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a b": nn.Linear(4, 4), "c%20d:8": nn.Linear(4, 4), "ü": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


def test_layers_may_have_any_names(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    network = capture(Named().eval(), x)
    _, layers = rounded(network, x, (32,))
    save_packed(tmp_path / "m.safetensors", network, "Named", layers)
    same(load_packed(tmp_path / "m.safetensors", Named()), simulated(network, layers).model, x)


def test_a_model_with_other_layers_is_refused(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    network = capture(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
    _, layers = rounded(network, x, (32,))
    path = tmp_path / "m.safetensors"
    save_packed(path, network, "Net", layers)
    for model, message in (
        (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), "no layer '2'; the file has no layer '1'"),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), r"'2' has weights \[3, 6\], in the file \[2, 6\]"),
        (nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2)), "other.1.weight"),
    ):
        with pytest.raises(InputError, match=message):
            load_packed(path, model)
    with pytest.raises(InputError, match="does not run on"):
        load_packed(path, nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))
