"""What the Fisher information promises: closed forms, and the divergence that small errors cause."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from captured import of_images
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.graph.unit_by_unit import run_units
from recon.graph.units import Unit
from recon.likelihood.heads import Categorical, Gaussian
from recon.likelihood.likelihood import Likelihood
from recon.reconstruct import CLASSIFIER, reconstruct
from recon.settings import Settings
from recon.statistics.fisher import fisher_diagonal, output_metrics

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
DRAWS = 64


def linear() -> Network:
    torch.manual_seed(0)
    return of_images(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), (1, 1, 8))


def test_the_fisher_diagonal_of_logits_has_a_closed_form() -> None:
    net, x = linear(), torch.randn(8000, 8)
    ((fisher,),) = fisher_diagonal(net, [x[:, None, None]], CLASSIFIER, 0).values()
    p = net.model(x[:, None, None]).softmax(1)
    assert torch.allclose(fisher, (p * (1 - p)).mean(0), rtol=0.05)  # E_y[(1{y=i} - p_i)²]


def test_the_metric_of_logits_has_a_closed_form() -> None:
    net, x = linear(), torch.randn(8000, 1, 1, 8)
    (metric,) = output_metrics(net, [x], CLASSIFIER, 0).values()
    p = net.model(x).softmax(1)
    assert torch.allclose(metric, torch.diag(p.mean(0)) - p.T @ p / len(x), atol=0.01)


def test_grouped_convolutions_and_embeddings_have_no_metric() -> None:
    grouped = of_images(
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 4)), (4, 4, 4), "grouped"
    )
    assert list(output_metrics(grouped, [torch.randn(4, 4, 4, 4)], CLASSIFIER, 0)) == ["2"]
    ids = torch.randint(0, 9, (4, 5))
    words = capture(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3)), ids)
    assert list(output_metrics(words, [ids], CLASSIFIER, 0)) == ["1"]


class TwoHeads(nn.Module):
    """A class and a box, from one trunk; a third output that means nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.box = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.other = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x).tanh()
        return {"kind": self.kind(x), "box": self.box(x), "other": self.other(x), "best": self.kind(x).argmax(1)}


HEADS = Likelihood((Categorical("kind"), Gaussian("box", 0.5)))


def test_heads_count_and_other_outputs_do_not() -> None:
    torch.manual_seed(0)
    net, x = of_images(TwoHeads(), (6,)), torch.randn(4000, 6)
    fisher = fisher_diagonal(net, [x], HEADS, 0)
    by_value = {
        value: found
        for unit in net.units
        for value, found in zip(
            [w for w, real in zip(unit.writes, unit.floating, strict=True) if real], fisher[unit.name], strict=True
        )
    }
    order = dict(zip(net.names, [node.name for node in list(net.module.graph.nodes)[-1].args[0]], strict=True))
    assert sorted(net.names) == ["best", "box", "kind", "other"]
    p = net.model(x)["kind"].softmax(1)
    assert torch.allclose(by_value[order["kind"]], (p * (1 - p)).mean(0), rtol=0.05)
    assert torch.allclose(by_value[order["box"]], torch.full((2,), 4.0))
    assert torch.equal(by_value[order["other"]], torch.zeros(2))


def test_two_heads_are_reconstructed_and_a_unit_that_nothing_depends_on_too() -> None:
    torch.manual_seed(0)
    net, x = of_images(TwoHeads(), (6,)), torch.randn(64, 6)
    config = BitConfig.uniform(net.table.names, Precision(3, 6))
    result = reconstruct(net, x, config, Settings(steps=5), likelihood=HEADS)
    assert set(result.layers.weights) == {"trunk", "kind", "box", "other"}
    assert all(report.loss_after <= report.loss_before for report in result.reports)


@pytest.mark.slow
def test_the_diagonal_predicts_the_divergence_of_small_errors() -> None:
    from mpsearch.sources.data import load_data
    from mpsearch.sources.models import load_model

    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 images in {DATA}")
    factory = f"{ROOT}/benchmarks/resnet20.py:make"
    loaded = load_model(factory, DATA / "models" / "cifar_resnet20.safetensors", demo=False)
    network = capture(loaded.model, Samples.noise(loaded.input_size), "resnet20")
    takes = {"input_size": loaded.input_size, "normalization": loaded.normalization}
    (x,) = load_data(DATA / "cifar10", calib_samples=512, val_samples=1, seed=0, **takes).calib.samples.leaves
    fisher = fisher_diagonal(network, [x], CLASSIFIER, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        truth = network.outputs_of(x)
        for unit in network.units:
            predicted = 1e-5  # nats: above what float32 loses, and where a quadratic form holds
            size = (2 * predicted / sum(part.sum() for part in fisher[unit.name])).sqrt()

            def disturbed(
                at: Unit, values: tuple[Tensor, ...], unit: Unit = unit, size: Tensor = size
            ) -> tuple[Tensor, ...]:
                if at is not unit:
                    return values
                return tuple(z + size * torch.randn(z.shape, generator=generator) for z in values)

            measured = 0.0
            for _ in range(DRAWS):
                measured += float(CLASSIFIER.divergence(truth, run_units(network, [x], disturbed)).mean()) / DRAWS
            assert measured == pytest.approx(predicted, rel=0.1), unit.name
