"""What a judge measures, against sums written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.finish.evaluate import BATCH, Judge, outputs_on
from mpsearch.sources.split import Normalization, Split
from mpsearch.tasks.ending import endings
from mpsearch.tasks.registry import TASKS
from recon.graph.network import Network, capture
from recon.graph.samples import Samples


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class After(nn.Module):
    """A linear map (6 → 5), then a function."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda z: z, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.function = nn.Linear(6, width), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.map(x))


def judged(net: Network, split: Split, task: str = "classification") -> Judge:
    outputs = net.model(*split.samples.leaves)
    return Judge.of(net, TASKS[task], TASKS[task].likelihood_of(outputs, endings(net)), split)


def captured(model: nn.Module, *shape: int) -> Network:
    return capture(model, Samples.noise(shape or (6,)), "small")


def test_outputs_do_not_depend_on_the_batch_and_serve_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    pixels = torch.randint(0, 256, (BATCH + 9, 8, 8, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    split = Split.of(pixels, torch.arange(len(pixels)) % 5, Normalization(mean, std))
    batches = list(outputs_on(split, model))
    assert [len(outputs) for outputs, _ in batches] == [BATCH, 9]
    assert torch.equal(torch.cat([targets for _, targets in batches]), split.targets)
    outputs = torch.cat([outputs for outputs, _ in batches])
    x = (pixels.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(outputs.double(), model.double()(x), atol=1e-5, rtol=1e-5)
    assert not outputs.is_inference()


def test_metrics_are_the_sums_of_their_definitions() -> None:
    net, x = captured(After()), draw(150, 6)
    z, near = net.model(x), net.copy()
    near.layer("map").weight.data += 0.1 * draw(5, 6, seed=1)
    y = z.argmax(1)
    y[:30] = (y[:30] + 1) % 5
    judge = judged(net, Split.of(x, y))
    assert judge.truth == {"top1": pytest.approx(80.0), "kl": 0.0}
    assert judge.doubts == ()
    assert [figure.title for figure in judge.figures] == ["top-1", "KL"]
    other = near.model(x)
    p, q = z.double().log_softmax(1), other.double().log_softmax(1)
    found = judge.measure(near.model)
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-6)
    assert found["top1"] == pytest.approx(100 * float((other.argmax(1) == y).double().mean()))


def test_without_labels_the_float_network_is_agreed_with() -> None:
    net, x = captured(After()), draw(90, 6)
    near = net.copy()
    near.layer("map").weight.data += 0.3 * draw(5, 6, seed=1)
    judge = judged(net, Split.of(x))
    assert judge.truth == {"agreement": 100.0, "kl": 0.0}
    agreed = (net.model(x).argmax(1) == near.model(x).argmax(1)).double().mean()
    assert judge.measure(near.model)["agreement"] == pytest.approx(100 * float(agreed))
    assert judge.measure(net.model) == judge.truth


@pytest.mark.parametrize(
    "form",
    [lambda z: z.softmax(1), lambda z: z.log_softmax(-1), lambda z: z.softmax(1).log()],
    ids=["softmax", "log_softmax", "log"],
)
def test_probabilities_have_the_divergence_of_their_logits(form: Callable[[Tensor], Tensor]) -> None:
    x, found = draw(70, 6), []
    for function in (After().function, form):
        net = captured(After(function))
        near = net.copy()
        near.layer("map").weight.data += 0.2 * draw(5, 6, seed=1)
        found.append(judged(net, Split.of(x)).measure(near.model))
    assert found[1]["kl"] == pytest.approx(found[0]["kl"], rel=1e-4)
    assert found[1]["agreement"] == found[0]["agreement"]


def test_a_map_is_compared_over_its_classes_not_over_its_width() -> None:
    torch.manual_seed(0)
    net = captured(nn.Conv2d(3, 4, 3, padding=1), 3, 6, 7)
    near, x = net.copy(), draw(10, 3, 6, 7)
    (name,) = net.table.names
    near.layer(name).weight.data += 0.2 * draw(4, 3, 3, 3, seed=1)
    judge = judged(net, Split.of(x), "segmentation")
    found = judge.measure(near.model)["kl"]
    over = {}
    for dim in (1, 3):
        p, q = (model(x).double().log_softmax(dim) for model in (net.model, near.model))
        over[dim] = float((p.exp() * (p - q)).sum(dim).mean())
    assert found == pytest.approx(over[1], rel=1e-6)
    assert found != pytest.approx(over[3], rel=0.05)


def test_nan_outputs_are_refused_by_sample() -> None:
    net, x = captured(After(torch.log)), draw(BATCH + 6, 6)
    with torch.no_grad():
        net.layer("map").weight.zero_()
        net.layer("map").weight[:, 0] = 1
        net.layer("map").bias.zero_()
    x[:, 0] = 1
    x[BATCH + 2, 0] = -1
    fine = TASKS["classification"].likelihood_of(net.model(x[:BATCH]))
    with pytest.raises(InputError, match=rf"1 of a batch of 6 have NaN .*first: sample {BATCH + 2}\)"):
        Judge.of(net, TASKS["classification"], fine, Split.of(x))


class Placed(nn.Module):
    """Remembers where it was asked to go."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, []

    def to(self, device: torch.device) -> Placed:  # type: ignore[override]
        self.asked.append(device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def test_models_are_measured_where_the_network_computes() -> None:
    net, split = captured(After()), Split.of(draw(9, 6))
    judge = judged(net, split)
    model = Placed(net.model)
    assert judge.measure(model) == judge.truth
    assert model.asked == [judge.device] == [net.device]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_models_are_measured_on_a_gpu_where_the_network_is_there() -> None:
    net = captured(After().cuda())
    judge = judged(net, Split.of(draw(9, 6).cuda()))
    assert judge.device.type == "cuda"
    model = net.copy().model.cpu()
    assert judge.measure(model)["kl"] < 1e-9
    assert {z.device.type for z in model.parameters()} == {"cuda"}
    assert {z.device.type for z in judge.reference} == {"cpu"}


def test_the_reference_is_kept_in_main_memory_in_batches() -> None:
    net, x = captured(After()), draw(BATCH + 1, 6)
    judge = judged(net, Split.of(x))
    assert [len(z) for z in judge.reference] == [BATCH, 1]
    torch.testing.assert_close(torch.cat(judge.reference), net.model(x))


@pytest.mark.parametrize(
    ("right", "classes", "doubted"),
    [(1.0, 10, False), (0.5, 10, False), (0.18, 10, True), (0.1, 10, True), (0.5, 2, True), (0.8, 2, False)],
)
def test_what_is_near_chance_is_said(right: float, classes: int, doubted: bool) -> None:
    x = draw(2000, 6)
    net = captured(After(width=classes))
    with torch.no_grad():
        net.layer("map").weight.zero_()
        net.layer("map").weight[:6] = torch.eye(6)[:classes]
        net.layer("map").bias[6:] = 1.0
    decided = net.model(x).argmax(1)
    generator = torch.Generator().manual_seed(0)
    guess = torch.randint(1, classes, (2000,), generator=generator)
    y = torch.where(torch.rand(2000, generator=generator) < right, decided, (decided + guess) % classes)
    doubts = judged(net, Split.of(x, y)).doubts
    assert bool(doubts) is doubted
    if doubted:
        assert "guessing gives" in doubts[0]
        assert "input size and normalisation" in doubts[0]


def test_labels_of_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="whole numbers from 0 to 4"):
        judged(captured(After()), Split.of(draw(8, 6), torch.full((8,), 7)))
