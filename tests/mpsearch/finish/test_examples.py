"""The float network on some calibration samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.finish import examples
from mpsearch.finish.examples import example_outputs, is_random, require_finite
from mpsearch.sources.split import Split
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.likelihood.heads import Categorical
from recon.likelihood.likelihood import Likelihood


class Two(nn.Module):
    """A dict of scores and features, with noise on the former."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.noise = nn.Linear(6, 5), noise

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.map(x)
        return {"scores": z + self.noise * torch.randn_like(z), "features": z.relu()}


def net(noise: float = 0.0) -> Network:
    return capture(Two(noise), Samples.noise((6,)), "two")


def test_outputs_are_those_of_the_first_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = net(), torch.randn(examples.MOST + 40, 6)
    found = example_outputs(network, Split.of(x))
    assert set(found) == {"scores", "features"}
    for name, expected in network.model(x[: examples.MOST]).items():
        torch.testing.assert_close(found[name], expected)
    monkeypatch.setattr(examples, "MOST_BYTES", 1)  # maps of outputs need not all be kept
    assert len(example_outputs(network, Split.of(x))["scores"]) == examples.BATCH


def test_infinite_outputs_are_refused_but_for_classes_that_are_ruled_out() -> None:
    scores = torch.zeros(6, 3)
    scores[:, 2] = -torch.inf
    likelihood = Likelihood((Categorical("scores"),))
    require_finite(likelihood, {"scores": scores})
    scores[4, 0] = torch.nan
    with pytest.raises(InputError, match=r"1 of 6 calibration samples .*first: sample 4"):
        require_finite(likelihood, {"scores": scores})


def test_a_network_that_draws_is_known_by_its_second_answer() -> None:
    split = Split.of(torch.randn(8, 6))
    assert not is_random(net(), split)
    assert is_random(net(noise=5e-4), split)
