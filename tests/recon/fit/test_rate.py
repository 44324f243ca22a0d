"""What entropy-coded layers take together is what they may take."""

from __future__ import annotations

import pytest
import torch
from captured import of_images
from torch import nn

from hwmodel import BitConfig, Precision
from recon.fit.rate import LAST_CLOSE, MOST, MOST_OCTAVES, RateControl, control, stored_bytes
from recon.graph.layers import Layer
from recon.quantizers.coded import FARTHEST, ZERO, coded_bytes, symbols_of, to_bias_grid
from recon.quantizers.learned import decide_rounding, learn_rounding, rounding_of
from recon.quantizers.nearest import own_grid
from recon.quantizers.quantized import QuantizedLayers
from recon.quantizers.rounding import StraightThrough
from recon.quantizers.weights import codes_at
from recon.reconstruct import reconstruct
from recon.settings import Settings


@pytest.fixture
def layers() -> dict[str, Layer]:
    torch.manual_seed(0)
    net = of_images(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32)), (64,))
    found = {name: net.layer(name) for name in net.table.names}
    for layer in found.values():
        grid = own_grid(layer.weight, Precision(8, rate=3.0))
        learn_rounding(layer, StraightThrough(codes_at(layer.weight.detach(), grid), grid))
    return found


@pytest.mark.parametrize("share", [0.999, 0.98, 0.96])
def test_the_cheapest_codes_are_trimmed(share: float, layers: dict[str, Layer]) -> None:
    wanted = {name: share * stored_bytes(layer) for name, layer in layers.items()}
    before = {name: rounding_of(layer).integer() for name, layer in layers.items()}
    rate = control(wanted, layers.items())
    assert rate is not None
    rate.trim(layers)
    taken = sum(map(stored_bytes, layers.values()))
    assert taken <= sum(wanted.values())
    assert taken > sum(wanted.values()) * 0.995
    for name, layer in layers.items():
        moved = (before[name] - ZERO).abs() - (rounding_of(layer).integer() - ZERO).abs()
        assert set(moved.unique().tolist()) == {0.0, 1.0}  # nearer to zero by one or not at all
        assert moved.mean() < 0.3


def test_codes_on_a_path_stay_on_one() -> None:
    torch.manual_seed(0)
    net = of_images(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32)), (64,))
    config = BitConfig.uniform(net.table.names, Precision(8, rate=3.0))
    done = reconstruct(net, torch.randn(64, 64), config, Settings(steps=0))
    found = {name: net.layer(name) for name in net.table.names}
    for name, layer in found.items():
        stored = done.layers.weights[name]
        learn_rounding(layer, StraightThrough(stored.codes.float(), stored.grid))
        assert len(symbols_of(stored.codes)) == 2
    rate = control({name: 0.97 * stored_bytes(layer) for name, layer in found.items()}, found.items())
    assert rate is not None
    rate.trim(found)
    assert 0.95 * sum(rate.wanted.values()) < sum(map(stored_bytes, found.values())) <= sum(rate.wanted.values())
    for name, layer in found.items():
        codes = rounding_of(layer).freeze().codes
        assert len(symbols_of(codes)) == 2
        assert set((codes.int() - done.layers.weights[name].codes.int()).unique().tolist()) <= {-4, 0, 4}


def test_what_fits_stays(layers: dict[str, Layer]) -> None:
    wanted = {name: stored_bytes(layer) / MOST for name, layer in layers.items()}
    before = {name: rounding_of(layer).integer() for name, layer in layers.items()}
    rate = RateControl(wanted, dict.fromkeys(wanted, 1))
    rate.trim(layers)
    assert all(torch.equal(rounding_of(layer).integer(), before[name]) for name, layer in layers.items())
    assert control({}, layers.items()) is control(None, layers.items()) is None


def test_steps_make_up_for_what_was_spent(layers: dict[str, Layer]) -> None:
    first, second = layers
    counts = {name: layer.weight.numel() for name, layer in layers.items()}
    rate = RateControl({first: stored_bytes(layers[first]) - 24, second: 600.0}, counts)
    assert rate.widened() == {first: 0.0, second: 0.0}
    wider = rate.corrected({first: layers[first]}, rate.widened())
    assert wider == {first: pytest.approx(8 * 24 / counts[first])}
    assert rate.corrected({first: layers[first]}, {first: 0.1}) == {first: pytest.approx(0.1 + 8 * 24 / counts[first])}
    rate.spend({first: layers[first]})
    assert rate.widened() == {second: pytest.approx(8 * 24 / counts[second])}  # a bit of every code for an octave
    rate = RateControl({first: 1.0, second: 600.0}, counts)
    rate.spend({first: layers[first]})
    assert rate.widened() == {second: MOST_OCTAVES}


def test_the_last_layers_take_no_more_than_is_left(layers: dict[str, Layer]) -> None:
    first, second = layers
    sizes = {name: stored_bytes(layer) for name, layer in layers.items()}
    counts = {name: layer.weight.numel() for name, layer in layers.items()}
    for left, close in ((1 + LAST_CLOSE, True), (1.0, False), (1 + 3 * LAST_CLOSE, False)):
        more = (sizes[first] + sizes[second] * left) / MOST - sizes[first]
        rate = RateControl({first: sizes[first], second: more}, counts)
        rate.spend({first: layers[first]})
        found = rate.corrected({second: layers[second]}, {second: 0.0})
        assert (found is None) is close, left


def test_a_network_is_finished_within_its_bytes() -> None:
    torch.manual_seed(0)
    net = of_images(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8)), (64,))
    x, config = torch.randn(64, 64), BitConfig.uniform(net.table.names, Precision(8, rate=3.0))
    wanted = {layer.name: layer.n_weights * 3 / 8 + 3 * layer.out_channels + 40 for layer in net.table}
    for share in (1.1, 0.9):
        most = {name: share * size for name, size in wanted.items()}
        done = reconstruct(net, x, config, Settings(steps=10), coded_bytes=most).layers
        assert done.config(net.table.names) == config
        taken = sum(stored_bytes_of(done, name) for name in net.table.names)
        assert 0.95 * sum(most.values()) < taken <= sum(most.values())
        assert all((weight.codes.float() - ZERO).abs().max() <= FARTHEST + 1 for weight in done.weights.values())


def stored_bytes_of(done: QuantizedLayers, name: str) -> float:
    return coded_bytes(done.weights[name], done.biases[name])


def test_gradient_steps_leave_codes_and_scales_alone() -> None:
    torch.manual_seed(0)
    net = of_images(nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)), (64,))
    x = torch.randn(64, 64)
    for inputs, same in ((32, True), (4, False)):
        config = BitConfig.uniform(net.table.names, Precision(8, inputs, 3.0))
        one, other = (
            reconstruct(net, x, config, Settings(steps=steps, early_stopping=False)).layers for steps in (0, 40)
        )
        first = net.table.names[0]
        assert torch.equal(one.weights[first].codes, other.weights[first].codes)
        assert torch.equal(one.weights[first].grid.scale, other.weights[first].grid.scale)
        assert torch.equal(one.biases[first], other.biases[first]) is same  # they learn with the steps of activations


def test_biases_are_where_files_hold_them_when_a_unit_is_finished(layers: dict[str, Layer]) -> None:
    for layer in layers.values():
        before = layer.bias.detach().clone()
        decide_rounding(layer)
        assert not torch.equal(layer.bias, before)
        assert torch.equal(layer.bias, to_bias_grid(before))
