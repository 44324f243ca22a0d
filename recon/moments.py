"""Second moments of layer inputs: the Hessian of a layer's squared output error."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENT_IMAGES = 128  # enough: a layer's inputs have many positions an image


def second_moment(layer: nn.Conv2d | nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """E[p pᵀ] (G, K, K) and E[p] (G, K) of the input patches p that `layer` multiplies its weight with, for x (N, …).

    G is the layer's groups, K the weights of one output channel. float32.
    """
    patches = input_patches(layer, x.float())
    return patches @ patches.transpose(1, 2) / patches.shape[-1], patches.mean(2)


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
    """Collects the second moments of every given layer while a module runs; a context manager."""

    def __init__(self, layers: dict[str, nn.Conv2d | nn.Linear]) -> None:
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

    @torch.no_grad()
    def _see(self, name: str, layer: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            moment, mean = second_moment(layer, x)
        old_moment, old_mean, count = self._sums.get(name, (torch.zeros_like(moment), torch.zeros_like(mean), 0))
        self._sums[name] = old_moment + moment * len(x), old_mean + mean * len(x), count + len(x)

    def moment(self, name: str) -> Tensor:
        """The second moment (G, K, K) of layer `name`'s inputs."""
        total, _, count = self._sums[name]
        return total / count

    def mean(self, name: str) -> Tensor:
        """The mean input patch (G, K) of layer `name`."""
        _, total, count = self._sums[name]
        return total / count
