"""Means and covariances of layer inputs: what a layer's rounding does to its output.

Once a bias takes out the mean error, the covariance is the Hessian of the squared output error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.activity import Activation, activity
from recon.compute import channels_last, device_of, fast, mixed_order

POSITIONS = 262_144  # input patches that are enough for a layer's second moments
LEAST_DAMPING = 0.1  # of the mean variance
MOST_SHRUNK = 0.95
LEAST_VARIANCE = 1e-6  # of the mean power: what float32 sums leave uncertain
BATCH = 4  # patches of a depthwise convolution take nine times the memory of its input, twice


def input_patches(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """The patches (G, K, M) of inputs x (N, …), M = N × output positions."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).T[None]
    if layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding == (0, 0):
        return x[:, :, :: layer.stride[0], :: layer.stride[1]].permute(0, 2, 3, 1).flatten(0, 2).T[None]
    patches = F.unfold(pad_like(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)
    return patches.view(len(x), layer.groups, -1, patches.shape[-1]).permute(1, 2, 0, 3).flatten(2)


def by_group(layer: nn.Conv2d | nn.Linear, z: Tensor) -> Tensor:
    """Outputs z (N, …) of `layer` as (G, O / G, M), M = N × positions."""
    if isinstance(layer, nn.Linear):
        return z.flatten(0, -2).T[None]
    return z.transpose(0, 1).flatten(1).view(layer.groups, -1, z[:, 0].numel())


def mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """The mean output (O,) that a weight (O, K) gives for mean input patches (G, K), or (O, K) for each output its
    own."""
    groups, length = mean.shape
    return torch.einsum("gok,gk->go", weight.view(groups, -1, length), mean).flatten()


def pad_like(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """x (N, C, H, W) padded the way `layer` pads it."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


@dataclass(frozen=True, slots=True)
class Sums:
    """Weighted sums over `count` columns a and b: of a bᵀ (G, J, K), of a (G, J), of b (G, K), and of the weights."""

    product: Tensor | float = 0.0
    left: Tensor | float = 0.0
    right: Tensor | float = 0.0
    mass: Tensor | float = 0.0
    count: int = 0

    @classmethod
    def of(cls, left: Tensor, right: Tensor, weight: Tensor | None = None) -> Sums:
        """Those of columns (G, J, M) and (G, K, M), weighted (G, 1, M) or each by 1."""
        count = right.shape[2]
        if weight is None:
            return cls(left @ right.transpose(1, 2), left.sum(2), right.sum(2), float(count), count)
        weighted = left * weight
        product, heavy = weighted @ right.transpose(1, 2), right @ weight.transpose(1, 2)
        return cls(product, weighted.sum(2), heavy[..., 0], weight.sum(2), count)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.product + other.product,
            self.left + other.left,
            self.right + other.right,
            self.mass + other.mass,
            self.count + other.count,
        )

    def _per_mass(self, sums: Tensor | float) -> Tensor:
        sums, mass = torch.as_tensor(sums), torch.as_tensor(self.mass).clamp_min(1e-30)
        return sums / mass.view(*mass.shape, *[1] * (sums.dim() - mass.dim())) if mass.dim() else sums / mass

    def second_moment(self) -> Tensor:
        """E[a bᵀ] (G, J, K)."""
        return self._per_mass(self.product)

    def means(self) -> tuple[Tensor, Tensor]:
        """E[a] (G, J) and E[b] (G, K)."""
        return self._per_mass(self.left), self._per_mass(self.right)

    def covariance(self) -> Tensor:
        """Cov[a, b] (G, J, K)."""
        left, right = self.means()
        return self.second_moment() - left[..., None] * right[..., None, :]


class InputMoments:
    """Means and covariances of every given layer's inputs, gathered while a module runs; a context manager.

    Where the layer's activation function is known, inputs count as much as the output's `activity`: in means for every
    output by itself, in covariances where every output has a group of its own.
    """

    def __init__(
        self, layers: Mapping[str, nn.Conv2d | nn.Linear], activations: Mapping[str, Activation] | None = None
    ) -> None:
        self.layers, self.activations = layers, activations or {}
        self._halves: dict[str, list[Sums]] = {name: [Sums(), Sums()] for name in layers}
        self._active: dict[str, Sums] = {}

    def __enter__(self) -> InputMoments:
        self._hooks = [
            layer.register_forward_hook(lambda layer, args, z, name=name: self._see(name, layer, args[0], z))
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def enough(self) -> bool:
        """Every layer has seen `POSITIONS` patches."""
        return all(map(self._full, self._halves))

    def _full(self, name: str) -> bool:
        return sum(half.count for half in self._halves[name]) >= POSITIONS

    @torch.no_grad()
    def _see(self, name: str, layer: nn.Conv2d | nn.Linear, x: Tensor, z: Tensor) -> None:
        if self._full(name):
            return
        with torch.autocast(x.device.type, enabled=False):
            active = by_group(layer, activity(z, self.activations[name])) if name in self.activations else None
            patches = input_patches(layer, x.float())
            if active is not None:
                self._active[name] = self._active.get(name, Sums()) + Sums.of(active, patches)
            seen = Sums.of(patches, patches, active if active is not None and active.shape[1] == 1 else None)
        halves = self._halves[name]
        halves[halves[1].count < halves[0].count] += seen

    def mean(self, name: str) -> Tensor:
        """The mean input patch of layer `name` (G, K), or (O, K) for every output of its own."""
        if name not in self._active:
            return sum(self._halves[name], Sums()).means()[0]
        active = self._active[name]
        return (torch.as_tensor(active.product) / torch.as_tensor(active.left)[..., None]).flatten(0, 1)

    def hessian(self, name: str) -> Tensor:
        """The covariance (G, K, K) of layer `name`'s input patches, shrunk to its mean variance: positive definite.

        The fewer images have been seen, the more: as Ledoit and Wolf do it ("A well-conditioned estimator for
        large-dimensional covariance matrices", J. Multivariate Analysis 88, 2004), with the variance of the estimate
        taken from two halves of the images, since the patches of one image are no independent samples.
        """
        one, other = self._halves[name]
        seen, other = one + other, other if other.count else one
        covariance = seen.covariance()
        identity = torch.eye(covariance.shape[1], device=covariance.device)
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1)
        uncertain = (one.covariance() - other.covariance()).square().sum((1, 2)) * one.count * other.count
        apart = (covariance - variance[:, None, None] * identity).square().sum((1, 2)) * seen.count**2
        share = (uncertain / apart.clamp_min(1e-30)).clamp_max(MOST_SHRUNK)
        damping = (share / (1 - share)).clamp_min(LEAST_DAMPING)
        power = seen.second_moment().diagonal(dim1=1, dim2=2).mean(1)
        variance = torch.maximum(variance, LEAST_VARIANCE * power).clamp_min(1e-12)
        damping = damping[:, None, None]
        return (covariance + damping * variance[:, None, None] * identity) / (1 + damping)


@torch.no_grad()
def gather_moments(
    module: nn.Module,
    layers: Mapping[str, nn.Conv2d | nn.Linear],
    x: Tensor,
    activations: Mapping[str, Activation] | None = None,
) -> InputMoments:
    """The moments of `layers` while `module` runs on x (N, …), in mixed order until all layers have seen enough."""
    where = device_of(module)
    with InputMoments(layers, activations) as moments, fast(where):
        for pick in torch.split(mixed_order(x), BATCH):
            module(channels_last(x[pick].to(where)))
            if moments.enough:
                break
    return moments
