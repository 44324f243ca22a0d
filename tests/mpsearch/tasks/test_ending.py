"""What a graph says of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.tasks.ending import endings
from mpsearch.tasks.registry import TASKS
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.likelihood.heads import Bernoulli, Categorical, Head


class After(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.function = nn.Linear(6, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.map(x))


def net(function: Callable[[Tensor], Any]) -> Network:
    return capture(After(function), Samples.noise((6,)), "small")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda z: z, {"": "logits"}),
        (lambda z: z[:, :1], {"": "logits"}),
        (lambda z: z.softmax(-1), {"": "probabilities"}),
        (lambda z: z.softmax(1).unsqueeze(2), {"": "probabilities"}),
        (lambda z: z.log_softmax(1), {"": "log-probabilities"}),
        (lambda z: torch.log(z.softmax(1)), {"": "log-probabilities"}),
        (lambda z: z.sigmoid(), {"": "sigmoid"}),
        (lambda z: z[:, 0].sigmoid(), {"": "sigmoid"}),
        (lambda z: z.sigmoid()[:, 0], {"": "sigmoid"}),
        (lambda z: {"a": z.softmax(1), "b": z.relu(), "c": z.sigmoid()}, {"a": "probabilities", "c": "sigmoid"}),
        (lambda z: z.softmax(0), {}),  # over the samples
        (lambda z: z.softmax(1)[:, :2], {}),  # some of them do not add up to 1
        (lambda z: z.tanh(), {}),
    ],
)
def test_the_last_operation_tells(function: Callable[[Tensor], Any], expected: dict[str, str]) -> None:
    assert endings(net(function)) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda z: z.sigmoid(), Bernoulli(form="probabilities")),
        (lambda z: z[:, :1].sigmoid(), Bernoulli(form="probabilities")),
        (lambda z: z[:, 0].sigmoid(), Bernoulli(dim=None, form="probabilities")),
        (lambda z: z[:, :1] * 1e-9 + 0.5, Bernoulli(form="probabilities")),  # by its values
        (lambda z: z.softmax(1), Categorical(form="probabilities")),
    ],
)
def test_classification_goes_by_the_graph(function: Callable[[Tensor], Any], expected: Head) -> None:
    network = net(function)
    outputs = network.model(torch.randn(8, 6))
    assert TASKS["classification"].likelihood_of(outputs, endings(network)).heads == (expected,)


def test_a_layer_gives_logits_whatever_their_values() -> None:
    network, x = net(lambda z: z[:, :1]), torch.randn(8, 6)
    with torch.no_grad():
        network.layer("map").weight.mul_(1e-3)
        network.layer("map").bias.fill_(0.5)
    outputs = network.model(x)
    assert 0 < outputs.min() < outputs.max() < 1
    task = TASKS["classification"]
    assert task.likelihood_of(outputs).heads == (Bernoulli(form="probabilities"),)
    assert task.likelihood_of(outputs, endings(network)).heads == (Bernoulli(form="logits"),)


def test_what_neither_graph_nor_values_tell_is_asked_for() -> None:
    network = net(lambda z: (z.tanh() + 1) / 2)
    outputs = network.model(torch.randn(8, 6))
    with pytest.raises(InputError, match="choose another --task"):
        TASKS["classification"].likelihood_of(outputs, endings(network))


def test_a_softmax_over_the_channels_of_a_map() -> None:
    torch.manual_seed(0)
    network = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1)), Samples.noise((3, 5, 5)), "map")
    outputs = network.model(torch.randn(4, 3, 5, 5))
    found = TASKS["segmentation"].likelihood_of(outputs, endings(network))
    assert found.heads == (Categorical(form="probabilities"),)


def test_of_several_decisions_the_surest_is_the_class() -> None:
    network, x = net(lambda z: z.sigmoid()), torch.randn(40, 6)
    outputs = network.model(x)
    likelihood = TASKS["classification"].likelihood_of(outputs, endings(network))
    top1 = TASKS["classification"].metrics_of(likelihood, labelled=True)[0]
    tally = top1.start()
    y = outputs.argmax(1)
    y[:10] = (y[:10] + 1) % 4
    tally.add(outputs, y, outputs)
    assert tally.value() == pytest.approx(75.0)
    tally = top1.start()
    tally.add(outputs, (outputs > 0.5).long(), outputs)  # a label a decision
    assert tally.value() == 100.0
