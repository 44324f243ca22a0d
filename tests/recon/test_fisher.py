"""What the Fisher information promises: second moments in closed form, and the divergence that small errors cause."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mpsearch.sources.images import load_data, normalize
from mpsearch.sources.models import load_model
from recon.fit.rescale import kl_divergence
from recon.graph.network import capture
from recon.statistics.fisher import fisher_diagonal, fisher_probe

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
DRAWS = 64


@pytest.mark.parametrize("sure", [0.0, 1.0, 6.0])
def test_gradients_of_the_probe_have_the_fisher_as_second_moment(sure: float) -> None:
    torch.manual_seed(0)
    one = torch.randn(5) + sure * torch.eye(5)[2]
    logits = one.repeat(200_000, 1).requires_grad_()
    (v,) = torch.autograd.grad(fisher_probe(logits, torch.Generator().manual_seed(0)), logits)
    p = one.softmax(0)
    fisher = p.diag() - p[:, None] * p
    assert torch.allclose(v.T @ v / len(v), fisher, rtol=0.02, atol=0.01 * float(fisher.trace()))
    # What a sure network owes it: no label weighs more than another.
    assert torch.allclose(v.square().sum(1), fisher.trace())


def test_a_network_without_doubt_has_no_fisher_information() -> None:
    logits = torch.tensor([[0.0, 2000.0, 0.0]]).requires_grad_()
    (v,) = torch.autograd.grad(fisher_probe(logits, torch.Generator().manual_seed(0)), logits)
    assert torch.equal(v, torch.zeros(1, 3))


@pytest.mark.slow
def test_the_diagonal_predicts_the_divergence_of_small_errors() -> None:
    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 images in {DATA}")
    factory = f"{ROOT}/benchmarks/resnet20.py:make"
    loaded = load_model(factory, DATA / "models" / "cifar_resnet20.safetensors", demo=False)
    network = capture(loaded.model, loaded.input_size, "resnet20")
    data = load_data(
        DATA / "cifar10", input_size=loaded.input_size, calib_samples=512, val_samples=1, seed=0, classes=10
    )
    x = normalize(data.calib.x, loaded.mean, loaded.std)
    fisher = fisher_diagonal(network, x, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        truth = network.model(x)
        for index, unit in enumerate(network.units):
            x = unit.module(x)
            predicted = 1e-5  # nats: above what float32 loses, and where a quadratic form holds
            size = (2 * predicted / fisher[unit.name].sum()).sqrt()
            measured = 0.0
            for _ in range(DRAWS):
                y = x + size * torch.randn(x.shape, generator=generator)
                for later in network.units[index + 1 :]:
                    y = later.module(y)
                measured += float(kl_divergence(truth, y)) / DRAWS
            assert measured == pytest.approx(predicted, rel=0.1), unit.name
