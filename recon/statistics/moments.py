"""Means and covariances of layer inputs: what a layer's rounding does to its output.

Once a bias takes out the mean error, the covariance is the Hessian of the squared output error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from recon.compute.arithmetic import device_of, fast, mixed_order, picked, positions_of
from recon.graph.layers import Layer, watched
from recon.graph.patterns import with_pooled_maps
from recon.statistics.slopes import Activation, slope_weight

IMAGES = 256  # whose patches are enough for a layer's second moments
PER_IMAGE = 256  # patches at most from one map: they overlap, and other images tell more
FEWEST, FOR_EACH = 64, 4  # patches from one map at least, and for each input of theirs: of nine, few tell all
LEAST_DAMPING = 0.1  # of the mean variance
MOST_SHRUNK = 0.95
LEAST_VARIANCE = 1e-6  # of the mean power: what float32 sums leave uncertain
WIDE = 4608  # inputs of an output up to which their covariance is one matrix: 512 channels of 3 × 3
BLOCK = 2048  # inputs at most of a block beyond that: the covariance of VGG's 25,088 has 2.5 GB
KEPT = 1024  # patches that are kept of a wide layer's
BATCH = 8


def from_one_map(length: int) -> int:
    """How many patches of `length` inputs are taken from one map."""
    return min(PER_IMAGE, max(FEWEST, FOR_EACH * length))


def some_positions(layer: Layer, z: Tensor, generator: torch.Generator, most: int | None = None) -> Tensor | None:
    """At random `most` of the positions of every output of a layer z (N, …), counted over all N; None where there are
    no more. By default as many as tell about patches of the layer's inputs."""
    count, most = layer.positions_of(z), most or from_one_map(layer.weight[0].numel())
    if count <= most:
        return None
    of_one = torch.randperm(count, generator=generator)[:most]
    return (torch.arange(len(z))[:, None] * count + of_one).flatten().to(z.device)


def mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """The mean output (O,) that a weight (O, K) gives for mean input patches (G, K), or (O, K) for each output its
    own."""
    groups, length = mean.shape
    return torch.einsum("gok,gk->go", weight.view(groups, -1, length), mean).flatten()


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


def weights_of(active: Tensor | None) -> Tensor | None:
    """Weights (G, 1, M) of patches, where every output has a group of its own, and so inputs that count as it does."""
    return active if active is not None and active.shape[1] == 1 else None


def blocks_of(length: int) -> int:
    """In how many equal blocks `length` inputs are taken: the fewest of at most `BLOCK`; one where they are few, or
    have no divisor that leaves a block a fourth of that."""
    if length <= WIDE:
        return 1
    counts = range(-(-length // BLOCK), 4 * length // BLOCK + 1)
    return next((count for count in counts if length % count == 0), 1)


class InputMoments:
    """Means and covariances of one layer's inputs, as far as its outputs count.

    The covariance of a wide layer's inputs is that of B blocks of J of them and, between blocks, that of the patches
    themselves, which are fewer than inputs.
    """

    def __init__(self) -> None:
        self._halves = [Sums(), Sums()]
        self._kept: list[Tensor] = []
        self._groups, self._length = 1, 1
        self._active: Sums | None = None
        self._positions: Sums | None = None

    @property
    def count(self) -> int:
        """How many patches have been seen."""
        return sum(half.count for half in self._halves)

    @property
    def enough(self) -> bool:
        """As many patches have been seen as `IMAGES` large maps give."""
        return self.count >= IMAGES * from_one_map(self._length)

    def add(self, patches: Tensor, active: Tensor | None = None, pooled: Tensor | None = None) -> None:
        """Takes in patches (G, K, M). They count as much as the outputs (G, O / G, M) are `active`: in means for every
        output by itself, in covariances where every output has a group of its own. `pooled` (M, K, H, W) are the maps
        whose means over their positions the patches are, where they are."""
        blocks = blocks_of(patches.shape[1]) if len(patches) == 1 else 1
        if pooled is not None and len(patches) == blocks and pooled.shape[:2] == patches.shape[:0:-1]:
            step = -(-positions_of(pooled) // PER_IMAGE)
            columns = pooled.flatten(2)[:, :, ::step].float().transpose(0, 1).flatten(1)[None]
            self._positions = (self._positions or Sums()) + Sums.of(columns, columns)
        if active is not None:
            self._active = (self._active or Sums()) + Sums.of(active, patches)
        parts = patches if blocks == 1 else patches.reshape(blocks, -1, patches.shape[2])
        if blocks > 1 and sum(part.shape[2] for part in self._kept) < KEPT:
            self._kept.append(parts[:, :, :KEPT])
        seen = Sums.of(parts, parts, weights_of(active))
        self._groups, self._length = patches.shape[:2]
        self._halves[self._halves[1].count < self._halves[0].count] += seen

    def mean(self) -> Tensor:
        """The mean input patch (G, K), or (O, K) for every output of its own."""
        if self._active is None:
            return sum(self._halves, Sums()).means()[0].view(self._groups, -1)
        product, mass = torch.as_tensor(self._active.product), torch.as_tensor(self._active.left)
        return (product / mass[..., None]).flatten(0, 1)

    def hessian(self) -> Tensor:
        """The covariance (G, K, K) of the input patches, or (B, J, J) of blocks of them, shrunk to its mean variance:
        positive definite.

        The fewer images have been seen, the more: as Ledoit and Wolf do it ("A well-conditioned estimator for
        large-dimensional covariance matrices", J. Multivariate Analysis 88, 2004), with the variance of the estimate
        taken from two halves of the images, since the patches of one image are no independent samples.

        Where the patches are means over maps, they are shrunk to the covariance of the maps' positions, of which there
        are many times as many.
        """
        return self._shrunk()[0]

    @property
    def wide(self) -> bool:
        """Whether the covariance is that of blocks of inputs."""
        return bool(self._kept)

    def patches(self) -> Tensor:
        """What blocks of a wide layer's inputs have in common: patches X (B, J, M), so that X Xᵀ is the covariance
        between two blocks, shrunk as inside them."""
        damping = self._shrunk()[1]
        columns = torch.cat(self._kept, 2)
        shared: Tensor = (columns - columns.mean(2, keepdim=True)) / (columns.shape[2] * (1 + damping)).sqrt()
        return shared

    def solve(self, pulls: Tensor) -> Tensor:
        """Pulls (…, G, R, K) times the inverse of the covariance of all inputs."""
        hessian, damping, target = self._shrunk()
        if not self.wide:
            solved: Tensor = torch.linalg.solve(hessian, pulls.transpose(-1, -2)).transpose(-1, -2)
            return solved
        # X Xᵀ and a diagonal: Woodbury's identity, in the space of the patches.
        ridge = (damping / (1 + damping) * target).diagonal(dim1=1, dim2=2).flatten()
        columns = self.patches().flatten(0, 1)
        inner = columns.T @ (columns / ridge[:, None]) + torch.eye(columns.shape[1], device=columns.device)
        alone: Tensor = pulls / ridge
        common: Tensor = torch.linalg.solve(inner, (alone @ columns).transpose(-1, -2)).transpose(-1, -2)
        made_up: Tensor = common @ columns.T / ridge
        return alone - made_up

    def _shrunk(self) -> tuple[Tensor, Tensor, Tensor]:
        """The covariance, by how much (G, 1, 1) it was shrunk, and to what."""
        one, other = self._halves
        seen, other = one + other, other if other.count else one
        covariance = seen.covariance()
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1)
        power = seen.second_moment().diagonal(dim1=1, dim2=2).mean(1)
        variance = torch.maximum(variance, LEAST_VARIANCE * power).clamp_min(1e-12)[:, None, None]
        target = variance * torch.eye(covariance.shape[1], device=covariance.device)
        if self._positions is not None:
            spread = self._positions.covariance()
            spread = spread * (variance / spread.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-30))
            target = (spread + LEAST_DAMPING * target) / (1 + LEAST_DAMPING)
        uncertain = (one.covariance() - other.covariance()).square().sum((1, 2)) * one.count * other.count
        apart = (covariance - target).square().sum((1, 2)) * seen.count**2
        share = (uncertain / apart.clamp_min(1e-30)).clamp_max(MOST_SHRUNK)
        damping = (share / (1 - share)).clamp_min(LEAST_DAMPING)[:, None, None]
        return (covariance + damping * target) / (1 + damping), damping, target


@torch.no_grad()
def gather_moments(
    module: fx.GraphModule,
    layers: Mapping[str, Layer],
    leaves: Sequence[Tensor],
    activations: Mapping[str, Activation] | None = None,
) -> dict[str, InputMoments]:
    """The moments of `layers` while `module` runs on tensors (N, …), in mixed order until all layers have seen enough.

    Where the layer's activation function is known, inputs count as much as the output's `slope_weight`.
    """
    found, known = {name: InputMoments() for name in layers}, activations or {}
    generator, where = torch.Generator().manual_seed(0), device_of(module)
    module, taps = with_pooled_maps(module, layers)
    maps: dict[str, Tensor] = {}

    def keep(name: str, _: Tensor, pooled: Tensor) -> None:
        maps[name] = pooled

    def see(name: str, inputs: Tensor, z: Tensor) -> None:
        if not found[name].enough:
            with torch.autocast(z.device.type, enabled=False):
                layer = layers[name]
                positions = some_positions(layer, z, generator)
                outputs = layer.by_group(z, positions).float()
                active = slope_weight(outputs, known[name]) if name in known else None
                patches = layer.patches(inputs, positions).float()
                found[name].add(patches, active, maps.get(name))

    with watched(layers, see), watched(taps, keep), fast(where):
        for pick in torch.split(mixed_order(leaves[0]), BATCH):
            module(*picked(leaves, pick, where))
            if all(moments.enough for moments in found.values()):
                break
    return found
