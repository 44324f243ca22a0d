"""Every family of networks survives four-bit weights and eight-bit activations."""

from __future__ import annotations

import pytest
import torch
from families import SIDE, SMALL, small
from torch import Tensor

from hwmodel import BitConfig, Precision
from recon.likelihood.heads import Categorical
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import CLASSIFIER, reconstruct
from recon.settings import Settings

HEADS = {
    "u-net": Likelihood((Categorical(dim=1),)),
    "pixel shuffle": Likelihood((Categorical(dim=1),)),
    "pyramid": Likelihood(tuple(Categorical(part, dim=1) for part in ("one", "two"))),
}
QUICK = ("mobilenet_v3", "densenet", "googlenet", "convnext", "vit", "swin_v2", "u-net", "hrnet", "pyramid")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SMALL]
)
def test_it_survives(name: str) -> None:
    _, network = small(name)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    images = torch.randn(24, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    calibration, others = images[:16], images[16:]
    inner = [Precision(4, 8)] * (len(network.table) - 2)
    config = BitConfig(network.table.names, (Precision(8, 8), *inner, Precision(8, 8)))
    likelihood = HEADS.get(name, CLASSIFIER)
    result = reconstruct(network, calibration, config, Settings(steps=2, batch=8), likelihood=likelihood)
    assert result.layers.config(network.table.names) == config
    assert [report.block for report in result.reports] == [unit.name for unit in network.units]
    assert all(report.loss_after <= report.loss_before for report in result.reports)
    assert all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())
    with torch.no_grad():
        expected = network.outputs_of(others)

        def error(made: dict[str, Tensor]) -> float:
            return sum(float((made[part] - z).square().sum() / z.square().sum()) for part, z in expected.items())

        errors = [
            error(quantized(network, layers).outputs_of(others))
            for layers in (plainly_rounded(network, [calibration], config), result.layers)
        ]
    # Sixteen images of noise teach little: what is asked for is that nothing breaks, not that much is gained.
    assert errors[1] < 1.25 * errors[0], errors
    assert errors[1] < 0.25 * len(expected), errors
