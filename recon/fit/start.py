"""Where reconstruction starts: by default with every layer rounded so that its output moves least for the inputs that
it really gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hwmodel import BitConfig, Precision
from recon.fit.compensation import compensated
from recon.fit.obq import descend, descend_together, output_error, place_obq, refit_scale
from recon.fit.task import UnitTask
from recon.graph.layers import Embedding, Layer
from recon.quantizers.coded import coded_grid, to_log_grid
from recon.quantizers.learned import bias_of, learn_rounding
from recon.quantizers.nearest import own_grid
from recon.quantizers.rounding import make_rounding
from recon.quantizers.weights import Grid, codes_at, decode, nearby_grids, search_grid
from recon.settings import Settings
from recon.statistics.moments import InputMoments, mean_output

TRUSTED, MOST_SHARED = 0.15, 2.0  # 0.3 is no better in ResNet-20, where 0 leaves 1.15 times the KL in the same bytes
SEEN = 8  # inputs for every output, from which its importance is known
SHORT = 64  # weights of an output channel, up to which many grids are tried: there it is cheap and pays most


def second_order_rounding(
    weight: Tensor,
    precision: Precision,
    moments: InputMoments,
    symmetric: bool = False,
    metric: Tensor | None = None,
    widened: float = 0.0,
) -> tuple[Grid, Tensor, Tensor]:
    """The grid of a weight (O, …) for inputs with these `moments`, its continuous codes (O, …), and a bias (O,).

    The grid is searched with the input variance of each weight as its importance; the codes are those of `place_obq`,
    then of `descend` and, where there is the `metric` (O, O) of the outputs, of `descend_together`; the scales are
    refitted to them each time. The bias, to be added, takes out the mean error of the outputs, so that only their
    variance counts. Where the precision has a rate, the grid is that of `coded_grid`, its steps `widened` by so many
    octaves, and what is rounded is `shrunk`.
    """
    flat, hessian = weight.flatten(1), moments.hessian()
    wanted, ridged = flat, hessian
    if precision.rate:
        grid = widen(coded_grid(flat, precision.rate), widened, flat)
        if metric is not None and moments.count >= SEEN * len(flat):
            grid = shared_out(grid, metric.diagonal(), flat)
        wanted, ridged = (flat, hessian) if moments.wide else shrunk(flat, grid, hessian)
    else:
        variance = hessian.diagonal(dim1=1, dim2=2).reshape(-1, flat.shape[1])
        importance = variance.repeat_interleave(len(flat) // len(variance), 0)
        grid = search_grid(flat, precision.w, importance, symmetric, halves=True)
        grid = nearby_grids(grid, symmetric) if flat.shape[1] <= SHORT else grid
    if moments.wide:
        place = _round_blocks(flat, grid, hessian, moments.patches())
    else:
        grid, place = _round_channels(wanted, grid, ridged)
        if metric is not None:
            grid, place = descend_together(wanted, place.round(), grid, ridged, metric)
        grid = refit_scale(flat, place.round(), grid, hessian) if precision.rate else grid
    if precision.rate:
        grid = replace(grid, scale=to_log_grid(grid.scale))
    error = decode(place.round(), grid) - flat
    return grid, place.view_as(weight), -mean_output(error, moments.mean())


def shrunk(weight: Tensor, grid: Grid, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, K) and a Hessian (G, K, K) whose rounding weighs bits beside the error under `hessian`.

    Of codes of variance S² that are normally distributed, one that is q takes q² log2(e) / 2S² bits. Where the steps
    are as good as they can be, a bit less is worth (ln 2 / 6) Δ² of the weight's squared error, as that falls with the
    bits as 4^−R, times the curvature h that is left when the weights behind it make up for its error. Together that is
    a ridge of h / 12 S² on the Hessian: what is rounded is W H (H + ridge)⁻¹, as Wiener's filter shrinks.
    """
    factor = torch.linalg.cholesky(hessian)
    curvature = factor.diagonal(dim1=1, dim2=2).log().mean(1).mul(2).exp()
    variance = (weight / grid.scale[:, None]).square().mean().clamp_min(1e-6)
    ridge = (curvature / (12 * variance))[:, None, None] * torch.eye(hessian.shape[1], device=weight.device)
    rows = weight.view(len(hessian), -1, hessian.shape[1]) @ hessian
    wanted = torch.linalg.solve(hessian + ridge, rows.transpose(1, 2)).transpose(1, 2)
    return wanted.reshape(weight.shape), hessian + ridge


def _round_blocks(weight: Tensor, grid: Grid, hessian: Tensor, patches: Tensor) -> Tensor:
    """Continuous codes (O, K) of a wide weight (O, K), block by block of its inputs, with `hessian` (B, J, J) and
    `patches` (B, J, M) of each: what the blocks before it did to the outputs, a block is to make up for."""
    length, places = hessian.shape[1], []
    missing = torch.zeros(len(weight), patches.shape[2], device=weight.device)
    for own, seen, part in zip(torch.split(hessian, 1), patches, torch.split(weight, length, 1), strict=True):
        wanted, ridged = shrunk(part, grid, own) if grid.rate else (part, own)
        wanted = wanted - torch.linalg.solve(ridged[0], seen @ missing.T).T
        place = descend(wanted, place_obq(wanted, grid, ridged).round(), grid, ridged)
        missing += (decode(place.round(), grid) - part) @ seen
        places.append(place)
    return torch.cat(places, 1)


def shared_out(grid: Grid, importance: Tensor, weight: Tensor) -> Grid:
    """The grid with steps that are finer in the output channels whose errors cost more, by the `importance` (O,) of
    their squares; the mean of the logarithms stays.

    With as many bits in all, the error is least where every channel's is the same share of it: steps in proportion to
    1/√importance. That holds for small errors, and the importance is known from a few images: `TRUSTED` of it is right.
    Of a thousand classes a few hundred images do not show most: there is nothing to trust.
    """
    cost = (importance * grid.scale.square()).clamp_min(1e-30).log2()
    reach = 2 * MOST_SHARED / TRUSTED
    cost = cost.clamp(cost.median() - reach, cost.median() + reach)  # channels that are dead cost nothing
    octaves = TRUSTED / 2 * (cost.mean() - cost)
    return replace(grid, scale=to_log_grid(grid.scale * octaves.exp2(), weight.abs().amax(1)))


def widen(grid: Grid, octaves: float, weight: Tensor) -> Grid:
    """The grid with steps that are wider by so many octaves, as far as codes do not go beyond the ends."""
    farthest = weight.flatten(1).abs().amax(1)
    return replace(grid, scale=to_log_grid(grid.scale * 2**octaves, farthest)) if octaves else grid


def _round_channels(weight: Tensor, grid: Grid, hessian: Tensor) -> tuple[Grid, Tensor]:
    """The grid and the continuous codes (O, K) of weight (O, K) that leave each output channel's least error under
    `hessian` (G, K, K), of the grids that `grid` has for it: as many for every channel, one after another."""
    tries = len(grid.scale) // len(weight)
    repeated = weight.repeat_interleave(tries, 0)
    place = place_obq(repeated, grid, hessian)
    grid = refit_scale(repeated, place.round(), grid, hessian)
    place = descend(repeated, place.round(), grid, hessian)
    grid = refit_scale(repeated, place.round(), grid, hessian)
    if tries == 1:
        return grid, place
    error = output_error(decode(place.round(), grid) - repeated, hessian)
    best = error.view(-1, tries).argmin(1) + tries * torch.arange(len(weight), device=weight.device)
    return replace(grid, scale=grid.scale[best], zero_point=grid.zero_point[best]), place[best]


def second_order_start(
    task: UnitTask, config: BitConfig, settings: Settings, widened: Mapping[str, float] | None = None
) -> None:
    """Puts roundings on the layers of a unit, one after another, each for the inputs that those before it leave, and of
    the weight that makes up for them. Steps of entropy-coded layers are `widened` by so many octaves, by name."""
    widened = widened or {}
    for name, layer in task.layers.items():
        if isinstance(layer, Embedding):  # its rows are read one at a time: there is nothing to make up for
            place_nearest(layer, config[name], settings)
            continue
        moments, weight, shift = compensated(task, name)
        grid, place, bias = second_order_rounding(
            weight,
            config[name],
            moments,
            config[name].w in settings.symmetric,
            task.metrics.get(name),
            widened.get(name, 0.0),
        )
        bias_of(layer).data = bias_of(layer).data + shift + bias
        learn_rounding(layer, make_rounding(settings.rounding, place, grid))


def nearest_start(task: UnitTask, config: BitConfig, settings: Settings) -> None:
    """Puts roundings on the layers of a unit that stand where the weights stand, on the grids with the least error."""
    for name, layer in task.layers.items():
        place_nearest(layer, config[name], settings)


def place_nearest(layer: Layer, precision: Precision, settings: Settings) -> None:
    """Puts a rounding on a layer that stands where its weight stands."""
    weight = layer.weight.detach()
    grid = own_grid(weight, precision, precision.w in settings.symmetric)
    learn_rounding(layer, make_rounding(settings.rounding, codes_at(weight, grid), grid))
