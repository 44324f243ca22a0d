"""Entropy-coded layers: what comes back is what was written, in the bytes that were counted, or it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS

from hwmodel import BitConfig, InputError, MpsearchError, Precision
from hwmodel.size import STREAM_BYTES
from mpsearch.export.coded import CodedLayer, decode, encode
from mpsearch.export.packed import fill_packed, layout_of, save_packed
from recon.graph.layers import Layer
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.coded import ZERO, coded_bytes, to_bias_grid, to_log_grid
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.quantizers.trellis import FOLLOWING, second_quantizer, steps_of
from recon.quantizers.weights import Grid, QuantizedWeight


def layer(channels: int, length: int, spread: float, seed: int = 0) -> CodedLayer:
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.normal(ZERO, spread, (channels, length))).clip(0, 255).astype(np.uint8)
    scale = to_log_grid(torch.from_numpy(rng.lognormal(-4, 1, channels).astype(np.float32)))
    return CodedLayer(codes, scale, to_bias_grid(torch.from_numpy(rng.normal(size=channels).astype(np.float32))))


def on_a_path(channels: int, length: int, spread: float) -> CodedLayer:
    """A layer whose codes are on a path of the trellis."""
    rng, states = np.random.default_rng(4), np.zeros(channels, np.int64)
    codes = np.empty((channels, length), np.uint8)
    for k in range(length):
        indices = np.rint(rng.normal(0, spread, channels)).astype(np.int64).clip(-63, 63)
        codes[:, k] = steps_of(indices, second_quantizer(states)) + ZERO
        states = FOLLOWING[states, indices & 1]
    return replace(layer(channels, length, spread), codes=codes)


LAYERS = [
    layer(16, 500, 0.4),
    on_a_path(16, 70, 1.5),
    layer(3, 7, 3.0, 1),
    layer(1, 4, 0.0, 2),
    on_a_path(1, 30, 40.0),
    layer(8, 99, 300.0, 3),
]
SIZES = [(part.codes.size, len(part.scale), len(part.bias)) for part in LAYERS]


def counted(part: CodedLayer) -> float:
    """The bytes that the search counts."""
    weight = QuantizedWeight(Grid(8, part.scale, torch.full_like(part.scale, 128.0), 3.0), torch.from_numpy(part.codes))
    return coded_bytes(weight, part.bias)


def test_what_is_written_comes_back_in_the_bytes_counted() -> None:
    data = encode(LAYERS)
    for ours, theirs in zip(decode(data, SIZES), LAYERS, strict=True):
        assert np.array_equal(ours.codes, theirs.codes)
        assert torch.equal(ours.scale, theirs.scale)
        assert torch.equal(ours.bias, theirs.bias)
    assert 0 <= len(data) - sum(map(counted, LAYERS)) <= STREAM_BYTES
    assert encode(LAYERS) == data
    assert decode(encode([]), []) == []


def test_scales_that_the_format_does_not_have() -> None:
    with pytest.raises(MpsearchError, match="powers of 2"):
        encode([CodedLayer(LAYERS[0].codes, LAYERS[0].scale * 1.001, LAYERS[0].bias)])


def test_an_index_that_is_no_code_of_8_bits_is_refused() -> None:
    part = on_a_path(4, 40, 2.0)
    content, sizes = bytearray(encode([part])), [(part.codes.size, len(part.scale), len(part.bias))]
    assert content[0] == 2  # tables, then the lowest index of the first and how many more it has
    content[1] = 127 - content[2]
    decode(bytes(content), sizes)
    content[1] += 1  # the highest is 64 from zero now: 128 steps
    with pytest.raises(ValueError, match="codes that there are not"):
        decode(bytes(content), sizes)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_bytes_do_harm(data: st.DataObject) -> None:
    content = bytearray(encode(LAYERS))
    at = data.draw(st.integers(0, len(content)) | st.integers(0, 60))
    cut = data.draw(st.integers(0, 3) | st.integers(0, len(content)))
    content[at : at + cut] = data.draw(st.binary(max_size=4))
    try:
        found = decode(bytes(content), SIZES)
    except ValueError:
        return
    assert [len(part.codes) for part in found] == [len(part.codes) for part in LAYERS]
    assert all(torch.isfinite(part.bias).all() and (part.scale > 0).all() for part in found)


@pytest.mark.parametrize("abits", [32, 8])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_layer_comes_back(name: str, abits: int, tmp_path: Path) -> None:
    make, data = NETS[name]
    torch.manual_seed(0)
    model, batch, path = make().eval(), data(), tmp_path / "model.safetensors"
    network = capture(model, batch, name)
    rates = (1.5, 2.125, 8.0)
    config = BitConfig(network.table.names, tuple(Precision(8, abits, rates[k % 3]) for k in range(len(network.table))))
    layers = plainly_rounded(network, network.leaves(Samples.of(batch)), config)
    written = save_packed(path, network, "somewhere/net.py:make", layers)
    sizes = [coded_bytes(layers.weights[each], layers.biases[each]) for each in network.table.names]
    fixed = layout_of(network, "net.py:make", abits != 32, 0).fixed_bytes()
    inputs = 3 * len(layers.inputs)
    assert 0 <= fixed + sum(sizes) + inputs - written <= STREAM_BYTES
    filled, expected = fill_packed(path, network), quantized(network, layers)
    for each in network.table.names:
        assert torch.equal(filled.layer(each).weight, expected.layer(each).weight)
        assert torch.equal(filled.layer(each).bias, expected.layer(each).bias)


def network_layers(network: Network) -> list[Layer]:
    return [network.layer(name) for name in network.table.names]


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.ReLU(), torch.nn.Linear(40, 30)), tmp_path / "m"
    network = capture(model.eval(), torch.randn(2, 50), "net")
    config = BitConfig.uniform(network.table.names, Precision(8, rate=3.0))
    save_packed(path, network, "net", plainly_rounded(network, (torch.randn(2, 50),), config))
    good, weights = path.read_bytes(), [layer.weight for layer in network_layers(fill_packed(path, network))]
    refused = 0
    for at in range(0, len(good), 13):  # the header's length, the header, heads of layers and the stream
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        try:
            found = fill_packed(path, network)
        except InputError:
            refused += 1
        else:  # a space of the header
            assert all(map(torch.equal, [layer.weight for layer in network_layers(found)], weights))
    assert refused > 0.9 * len(good) / 13
    for end in range(0, len(good), 101):
        path.write_bytes(good[:end])
        with pytest.raises(InputError):
            fill_packed(path, network)
