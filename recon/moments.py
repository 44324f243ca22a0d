"""Covariances of layer inputs: the Hessian of a layer's squared output error once a bias takes out its mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.compute import channels_last, device, fast, mixed_order

POSITIONS = 262_144  # input patches that are enough for a layer's second moments
RIDGE = 1e-6  # of the second moment: what float32 sums leave uncertain about a covariance
BATCH = 4  # patches of a depthwise convolution take nine times the memory of its input, twice


def input_patches(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """The patches (G, K, M) of inputs x (N, …), M = N × output positions."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).T[None]
    if layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding == (0, 0):
        return x[:, :, :: layer.stride[0], :: layer.stride[1]].permute(0, 2, 3, 1).flatten(0, 2).T[None]
    patches = F.unfold(pad_like(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)
    return patches.view(len(x), layer.groups, -1, patches.shape[-1]).permute(1, 2, 0, 3).flatten(2)


def mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """The mean output (O,) that a weight (O, K) gives for mean input patches (G, K)."""
    groups, length = mean.shape
    return torch.einsum("gok,gk->go", weight.view(groups, -1, length), mean).flatten()


def pad_like(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """x (N, C, H, W) padded the way `layer` pads it."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


class InputMoments:
    """Means and covariances of every given layer's inputs, gathered while a module runs; a context manager."""

    def __init__(self, layers: Mapping[str, nn.Conv2d | nn.Linear]) -> None:
        self.layers = layers
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __enter__(self) -> InputMoments:
        self._hooks = [
            layer.register_forward_pre_hook(lambda module, args, name=name: self._see(name, module, args[0]))
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def enough(self) -> bool:
        """Every layer has seen `POSITIONS` patches."""
        return len(self._sums) == len(self.layers) and min(count for *_, count in self._sums.values()) >= POSITIONS

    @torch.no_grad()
    def _see(self, name: str, layer: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        square, total, count = self._sums.get(name, (0, 0, 0))
        if count >= POSITIONS:
            return
        with torch.autocast(x.device.type, enabled=False):
            patches = input_patches(layer, x.float())
            self._sums[name] = (
                square + patches @ patches.transpose(1, 2),
                total + patches.sum(2),
                count + patches.shape[-1],
            )

    def covariance(self, name: str) -> Tensor:
        """The covariance (G, K, K) of layer `name`'s input patches."""
        square, total, count = self._sums[name]
        second, mean = square / count, total / count
        ridge = RIDGE * second.diagonal(dim1=1, dim2=2)
        return second - mean[:, :, None] * mean[:, None] + torch.diag_embed(ridge)

    def mean(self, name: str) -> Tensor:
        """The mean input patch (G, K) of layer `name`."""
        _, total, count = self._sums[name]
        return total / count


@torch.no_grad()
def gather_moments(module: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], x: Tensor) -> InputMoments:
    """The moments of `layers` while `module` runs on x (N, …), in mixed order until all layers have seen enough."""
    with InputMoments(layers) as moments, fast():
        for pick in torch.split(mixed_order(x), BATCH):
            module(channels_last(x[pick].to(device())))
            if moments.enough:
                break
    return moments
