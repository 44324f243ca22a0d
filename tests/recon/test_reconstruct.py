"""Rounding, Fisher weights and block reconstruction: against closed forms, brute force and the rules of each method."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from captured import of_images
from torch import Tensor, nn

from hwmodel import BitConfig, InputError, Precision
from recon.compute.store import Store
from recon.fit.checkpoint import Progress
from recon.fit.rescale import rescale_logits
from recon.fit.task import UnitTask
from recon.graph.network import Network
from recon.likelihood.heads import Gaussian
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.learned import bias_of, learn_rounding, rounding_of
from recon.quantizers.nearest import nearest
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.quantizers.rounding import AdaRound, StraightThrough
from recon.quantizers.weights import QuantizedWeight, decode, encode, search_grid
from recon.reconstruct import CLASSIFIER, prepare, reconstruct
from recon.settings import Settings


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))


def network() -> Network:
    torch.manual_seed(0)
    stem, head = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*stem, Residual(8), Residual(8), *head, nn.Linear(8, 5))
    with torch.no_grad():
        model[-1].weight *= 8  # a network that is sure of something
    return of_images(model, (3, 12, 12), "small")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


QUICK = Settings(steps=60, batch=16)


def at(net: Network, bits: int) -> BitConfig:
    return BitConfig.uniform(net.table.names, Precision(bits))


def kl(net: Network, other: nn.Module, x: Tensor) -> float:
    with torch.inference_mode():
        p, q = net.model(x).log_softmax(1), other(x).log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("rounding", ["straight-through", "adaround"])
def test_it_beats_plain_rounding(images: Tensor, bits: int, rounding: str) -> None:
    net = network()
    settings = Settings(steps=150, batch=16, rounding=rounding)  # type: ignore[arg-type]
    result = reconstruct(net, images, at(net, bits), settings)
    unseen = torch.randn(256, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    plain = kl(net, quantized(net, plainly_rounded(net, [images], at(net, bits))).model, unseen)
    learned = kl(net, quantized(net, result.layers).model, unseen)
    assert learned < 0.6 * plain
    assert [report.block for report in result.reports] == [unit.name for unit in net.units]
    assert all(report.loss_after <= report.loss_before for report in result.reports)


@pytest.mark.parametrize("shrunk", [1.0, 1.05**7, 1.05**-4.5, 1.02])
def test_logits_that_were_shrunk_are_scaled_back(shrunk: float, images: Tensor) -> None:
    net, work = network(), network()
    for name in work.table.names:
        stored = nearest(work.layer(name).weight, Precision(8))
        learn_rounding(work.layer(name), StraightThrough(stored.codes.float(), stored.grid))
    last = work.layer(work.table.names[-1])
    rounding_of(last).log_scale.data -= math.log(shrunk)
    bias_of(last).data /= shrunk
    store = Store(2**30, net.device)
    factors = rescale_logits(work, net, [images], CLASSIFIER, store)
    assert factors == {work.table.names[-1]: pytest.approx(shrunk, rel=2e-3)}
    assert kl(net, work.model, images) < 1e-3


def test_the_network_that_goes_in_is_unchanged_and_the_result_repeatable(images: Tensor) -> None:
    net = network()
    state = {name: value.clone() for name, value in net.model.state_dict().items()}
    first, second = (reconstruct(net, images, at(net, 3), QUICK) for _ in range(2))
    assert all(torch.equal(value, state[name]) for name, value in net.model.state_dict().items())
    for name in net.table.names:
        assert torch.equal(first.layers.weights[name].codes, second.layers.weights[name].codes)
        assert torch.equal(first.layers.weights[name].grid.scale, second.layers.weights[name].grid.scale)
        assert torch.equal(first.layers.biases[name], second.layers.biases[name])
    other = reconstruct(net, images, at(net, 3), Settings(steps=60, batch=16, seed=1))
    assert any(not torch.equal(first.layers.weights[n].codes, other.layers.weights[n].codes) for n in net.table.names)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_reconstruction_goes_on_to_the_same_bits(images: Tensor, tmp_path: Path, after: int) -> None:
    net, path = network(), tmp_path / "partial"
    whole = reconstruct(net, images, at(net, 3), QUICK)
    done: list[str] = []

    def stop(report: object) -> None:
        done.append("")
        if len(done) == after:
            raise Stop

    with pytest.raises(Stop):
        reconstruct(net, images, at(net, 3), QUICK, progress=Progress(path, "key"), on_block=stop)
    resumed = reconstruct(net, images, at(net, 3), QUICK, progress=Progress(path, "key"))
    for name in net.table.names:
        assert torch.equal(whole.layers.weights[name].codes, resumed.layers.weights[name].codes)
        assert torch.equal(whole.layers.biases[name], resumed.layers.biases[name])
    assert Progress(path, "another key").restore(net.units[0].name, {}) is None
    path.write_bytes(b"damaged")
    assert Progress(path, "key").restore(net.units[0].name, {}) is None


def test_a_block_that_gets_worse_is_put_back(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()

    def worse(task: UnitTask, *_rest: object) -> None:
        for layer in task.layers.values():
            grid = search_grid(layer.weight, 4)
            learn_rounding(layer, StraightThrough(torch.zeros_like(layer.weight), grid))

    monkeypatch.setattr(sys.modules[reconstruct.__module__], "second_order_start", worse)
    result = reconstruct(net, images, at(net, 4), Settings(steps=1, batch=16))
    plain = plainly_rounded(net, [images], at(net, 4)).weights
    put_back = [unit for unit, report in zip(net.units, result.reports, strict=True) if report.outcome == "nearest"]
    assert put_back
    for unit in put_back:
        for name in unit.layers:
            found = result.layers.weights[name]
            if name == net.table.names[-1]:  # its scales go up or down together in the end
                factor = found.grid.scale / plain[name].grid.scale
                assert torch.allclose(factor, factor.mean(), rtol=2e-3)
                found = QuantizedWeight(plain[name].grid, found.codes)
            assert torch.equal(found.dequantize(), plain[name].dequantize())


def test_a_layer_at_eight_bits_costs_no_steps(images: Tensor) -> None:
    net = network()
    result = reconstruct(net, images, at(net, 8), QUICK)
    assert {report.outcome for report in result.reports} == {"enough"}
    assert {report.iterations for report in result.reports} == {0}


def test_a_start_that_leaves_much_gets_more_steps(images: Tensor) -> None:
    def steps(bits: int, early_stopping: bool = True) -> list[int]:
        settings = Settings(steps=3, batch=16, early_stopping=early_stopping)
        return [report.iterations for report in reconstruct(network(), images, at(network(), bits), settings).reports]

    assert set(steps(6)) == {3}
    assert 3 * 3 < max(steps(2)) <= 3 * 4
    assert set(steps(2, early_stopping=False)) == {3}


def test_a_block_of_too_many_weights_keeps_its_start(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    largest = max(spec.n_weights for spec in net.table)
    monkeypatch.setattr(sys.modules["recon.reconstruct"], "MOST_WEIGHTS", largest)  # of two such layers in a block
    result = reconstruct(net, images, at(net, 3), Settings(steps=20, batch=16))
    layers = {unit.name: len(unit.layers) for unit in net.units}
    for report in result.reports:
        assert (report.iterations == 0) == (layers[report.block] == 2), report
        assert report.loss_after < report.loss_before


def test_cycles_double_for_as_long_as_held_back_images_come_nearer(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["recon.reconstruct"]
    descend, cycles, losses = module.gradient_steps, [], []

    def spy(task: UnitTask, settings: Settings, steps: int) -> None:
        before = task.loss()
        descend(task, settings, steps)
        cycles.append((task.name, steps))
        losses.append(task.loss() < before)

    monkeypatch.setattr(module, "gradient_steps", spy)
    reports = reconstruct(network(), images, at(network(), 2), Settings(steps=40, batch=16)).reports
    ended_early = 0
    for report in reports:
        lengths = [steps for name, steps in cycles if name == report.block]
        assert sum(lengths) == report.iterations
        assert 10 <= lengths[0] <= 4 * 40 // 7
        assert lengths[:-1] == [lengths[0] * 2**index for index in range(len(lengths) - 1)]
        better = [nearer for nearer, (name, _) in zip(losses, cycles, strict=True) if name == report.block]
        assert all(better[:-1])
        ended_early += not better[-1]
    assert ended_early


def test_a_block_whose_best_rounding_is_known_is_solved() -> None:
    torch.manual_seed(5)
    layer = nn.Linear(8, 1)
    net = _one(layer)
    x = torch.randn(512, 8) @ torch.randn(8, 8)
    rates = {"code_rate": 0.01, "other_rate": 1e-9}
    how = {"rounding": "adaround", "weighting": "mse", "start": "nearest"}
    settings = Settings(steps=600, batch=64, **how, **rates)  # type: ignore[arg-type]
    value = Likelihood((Gaussian(),))
    found = reconstruct(net, x, at(net, 3), settings, likelihood=value).layers.weights[net.table.names[0]]
    weight, grid = layer.weight.detach(), found.grid
    floor = (weight / grid.scale + grid.zero_point).floor()

    def error(codes: Tensor) -> Tensor:
        return ((decode(codes, grid) - weight) @ x.T).square().mean(1)

    choices = torch.tensor(list(itertools.product((0, 1), repeat=8)))
    best = min(float(error((floor + choice).clamp(0, 7))) for choice in choices)
    plain = float(error(encode(weight, grid)))
    assert best < 0.9 * plain  # else there is nothing to find
    assert float(error(found.codes.float())) <= best + 0.1 * (plain - best)


def _one(layer: nn.Linear) -> Network:
    return of_images(nn.Sequential(nn.Flatten(), layer), (1, 1, 8), "one")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_adaround_moves_a_weight_to_a_neighbour_only(bits: int) -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    grid = search_grid(weight, bits)
    place = weight / grid.scale[:, None] + grid.zero_point[:, None]
    rounding = AdaRound(place, grid)
    assert torch.allclose(rounding(weight), weight.clamp(*_range(grid)), atol=1e-4)  # starts where the weight is
    rounding.code.data.uniform_(-9, 9)
    inside = (place >= 0) & (place <= grid.levels)
    away = (rounding.freeze().codes.float() - place)[inside].abs()
    assert away.max() < 1


def _range(grid: object) -> tuple[Tensor, Tensor]:
    scale, zero = grid.scale[:, None], grid.zero_point[:, None]  # type: ignore[attr-defined]
    return -zero * scale, (grid.levels - zero) * scale  # type: ignore[attr-defined]


def test_straight_through_is_always_hard_and_passes_gradients() -> None:
    weight = torch.randn(6, 20)
    grid = search_grid(weight, 2)
    place = weight / grid.scale[:, None] + grid.zero_point[:, None]
    rounding = StraightThrough(place, grid)
    value = rounding(weight)
    assert torch.equal(value, decode(encode(weight, grid), grid))
    assert torch.equal(value, rounding.freeze().dequantize())
    value.sum().backward()
    inside = (place > 0) & (place < grid.levels)
    assert torch.equal(rounding.code.grad != 0, inside)
    assert rounding.log_scale.grad is not None


def test_the_regulariser_is_off_first_and_pushes_to_integers() -> None:
    weight = torch.randn(4, 10)
    grid = search_grid(weight, 3)
    rounding = AdaRound(weight / grid.scale[:, None] + grid.zero_point[:, None], grid)
    assert float(rounding.regulariser(0.1)) == 0
    early, late = (rounding.regulariser(progress).item() for progress in (0.21, 0.99))
    assert 0 < late < early <= weight.numel()
    rounding.code.data = torch.where(rounding.code.data > 0, 20.0, -20.0)
    assert rounding.regulariser(0.9).item() == 0


def test_bad_settings_and_too_few_images_are_refused(images: Tensor) -> None:
    net = network()
    with pytest.raises(InputError, match="at least 2 calibration samples"):
        reconstruct(net, images[:1], at(net, 4), QUICK)
    with pytest.raises(InputError, match="--batch must be at least 1"):
        Settings(batch=0)
    with torch.no_grad():
        net.layer(net.table.names[0]).bias.fill_(1e6)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="half precision"):
        plainly_rounded(net, [images], at(net, 4))


def test_configurations_share_what_they_begin_with() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4))
    net, x, settings = of_images(model, (12,)), torch.randn(64, 12), Settings(steps=10)
    configs = [BitConfig.uniform(net.table.names, Precision(bits)) for bits in (3, 2, 3)]
    ready = prepare(net, x, configs[0], settings)
    alone, *_ = [reconstruct(net, x, config, settings).layers for config in configs[:2]]
    *_, shared = [reconstruct(net, x, config, settings, prepared=ready).layers for config in configs]
    for name in net.table.names:  # the third finds everything as the first did
        assert torch.equal(alone.weights[name].codes, shared.weights[name].codes)
        assert torch.equal(alone.weights[name].grid.scale, shared.weights[name].grid.scale)
        assert torch.equal(alone.biases[name], shared.biases[name])
