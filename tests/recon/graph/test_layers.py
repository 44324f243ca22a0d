"""Layers by kind: what they compute, what of their input each output reads, and how many multiply-accumulates it is."""

from __future__ import annotations

import pytest
import torch
from captured import counted_macs, of_images
from torch import Tensor, nn

from recon.graph.layers import layers_in, watched
from recon.graph.network import capture
from recon.statistics.moments import from_one_map, some_positions

KINDS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3), (4, 9)),
    (nn.Conv1d(4, 6, 4, stride=3, padding=2, groups=2), (4, 20)),
    (nn.Conv1d(4, 6, 4, padding="same", dilation=3), (4, 17)),
    (nn.Conv2d(4, 6, 3, padding=1), (4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2)), (4, 9, 8)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 9, 9)),
    (nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"), (4, 9, 9)),
    (nn.Conv2d(4, 6, 1, stride=2, bias=False), (4, 9, 9)),
    (nn.Conv2d(4, 6, 4, padding="same"), (4, 9, 9)),
    (nn.Conv2d(4, 6, 5, padding="valid"), (4, 9, 9)),
    (nn.Conv2d(4, 4, 2, padding="same", padding_mode="circular"), (4, 9, 9)),
    (nn.Conv3d(4, 6, 3, padding=1), (4, 3, 5, 4)),
    (nn.Conv3d(4, 6, (1, 2, 3), stride=(1, 2, 2), groups=2, dilation=(1, 2, 1)), (4, 3, 7, 6)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 7)),
    (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 5, 6)),
    (nn.ConvTranspose2d(4, 8, (3, 2), stride=(1, 3), dilation=(2, 1), groups=4, output_padding=(0, 2)), (4, 5, 6)),
    (nn.ConvTranspose3d(4, 6, 2, stride=(1, 2, 2), groups=2), (4, 2, 3, 3)),
    (nn.Linear(4, 6), (4,)),
    (nn.Linear(4, 6, bias=False), (5, 4)),
    (nn.Linear(4, 6), (2, 5, 4)),
]


@pytest.mark.parametrize(("layer", "size"), KINDS, ids=str)
@torch.no_grad()
def test_patches_times_the_weight_are_the_layer(layer: nn.Module, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, x = of_images(nn.Sequential(layer), size), torch.randn(3, *size)
    ours = net.layer("0")
    (spec,) = net.table
    seen: list[tuple[Tensor, Tensor]] = []
    with watched({"0": ours}, lambda _, read, made: seen.append((read, made))):
        z = net.model(x)
    assert torch.equal(z, layer(x))
    ((read, made),) = seen
    patches, weight = ours.patches(read), ours.weight.flatten(1)
    assert len(patches) == ours.groups == spec.groups
    product = torch.einsum("gok,gkm->gom", weight.view(len(patches), -1, weight.shape[1]), patches)
    assert torch.allclose(product + ours.bias.view(len(patches), -1, 1), ours.by_group(made), atol=1e-5)
    assert patches.shape[2] == len(x) * ours.positions_of(made)
    positions = torch.randperm(patches.shape[2])[:7]
    assert torch.equal(ours.patches(read, positions), patches[:, :, positions])
    assert torch.equal(ours.by_group(made, positions), ours.by_group(made)[:, :, positions])
    doubled = ours.apply_weight(read, 2 * ours.weight, 2 * ours.bias + 1)
    assert torch.allclose(doubled, 2 * made + 1, atol=1e-5)
    assert spec.macs == counted_macs(layer, x[:1])
    assert (spec.n_weights, spec.out_channels) == (layer.weight.numel(), len(ours.weight))
    assert (spec.n_activations, spec.n_outputs) == (read[0].numel(), made[0].numel())


def test_embeddings_are_rows_that_ids_pick() -> None:
    torch.manual_seed(0)
    model, ids = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 2)), torch.randint(0, 11, (3, 5))
    net = capture(model, ids)
    table, linear = net.table
    assert (table.kind, table.out_channels, table.n_weights, table.macs, table.n_biases) == ("embedding", 11, 66, 0, 0)
    assert (table.n_activations, table.n_outputs) == (5, 30)
    assert (linear.kind, linear.in_size, linear.macs) == ("linear", (5, 1), 60)
    layer = net.layer("0")
    assert layer.bias.shape == (0,)
    assert torch.equal(layer.apply_weight(ids, 2 * layer.weight, layer.bias), 2 * model[0](ids))
    assert torch.equal(net.model(ids), model(ids))


def test_every_other_layer_has_a_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(256, 2, bias=False))
    network = of_images(model, (3, 8, 8))
    assert [network.layer(name).bias.tolist() for name in network.table.names] == [[0] * 4, [0] * 2]
    assert list(layers_in(network.module)) == list(network.table.names)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2)])
def test_some_patches_are_those_of_their_positions(groups: int, kernel: int, stride: int) -> None:
    plain = nn.Conv2d(4, 8, kernel, stride, padding=kernel // 2, groups=groups)
    layer = of_images(nn.Sequential(plain), (4, 66, 67)).layer("0")
    x = torch.randn(3, 4, 66, 67).contiguous(memory_format=torch.channels_last)
    z = layer(x).detach()
    positions = some_positions(layer, z, torch.Generator().manual_seed(0))
    most = from_one_map(layer.weight[0].numel())
    assert (positions is None) == (z[0, 0].numel() <= most)
    positions = torch.arange(len(z) * z[0, 0].numel()) if positions is None else positions
    assert len(positions.unique()) == len(positions) == len(z) * min(most, z[0, 0].numel())
    assert torch.equal(layer.patches(x, positions), layer.patches(x)[:, :, positions])
    assert torch.equal(layer.by_group(z, positions), layer.by_group(z)[:, :, positions])
