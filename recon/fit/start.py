"""Where reconstruction starts: by default with every layer rounded so that its output moves least for the inputs that
it really gets."""

from __future__ import annotations

import torch
from torch import Tensor

from hwmodel import BitConfig
from recon.fit.compensation import compensated
from recon.fit.obq import descend, descend_together, output_error, place_obq, refit_scale
from recon.fit.task import UnitTask
from recon.graph.layers import Embedding, Layer
from recon.quantizers.learned import bias_of, learn_rounding
from recon.quantizers.rounding import make_rounding
from recon.quantizers.weights import Grid, codes_at, decode, nearby_grids, search_grid
from recon.settings import Settings
from recon.statistics.moments import InputMoments, mean_output

SHORT = 64  # weights of an output channel, up to which many grids are tried: there it is cheap and pays most


def second_order_rounding(
    weight: Tensor,
    bits: int,
    moments: InputMoments,
    symmetric: bool = False,
    metric: Tensor | None = None,
) -> tuple[Grid, Tensor, Tensor]:
    """The grid of a weight (O, …) for inputs with these `moments`, its continuous codes (O, …), and a bias (O,).

    The grid is searched with the input variance of each weight as its importance; the codes are those of `place_obq`,
    then of `descend` and, where there is the `metric` (O, O) of the outputs, of `descend_together`; the scales are
    refitted to them each time. The bias, to be added, takes out the mean error of the outputs, so that only their
    variance counts.
    """
    flat, hessian = weight.flatten(1), moments.hessian()
    variance = hessian.diagonal(dim1=1, dim2=2)
    importance = variance.repeat_interleave(len(flat) // len(variance), 0)
    grid = search_grid(flat, bits, importance, symmetric, halves=True)
    grid, place = _round_channels(flat, nearby_grids(grid, symmetric) if flat.shape[1] <= SHORT else grid, hessian)
    if metric is not None:
        grid, place = descend_together(flat, place.round(), grid, hessian, metric)
    error = decode(place.round(), grid) - flat
    return grid, place.view_as(weight), -mean_output(error, moments.mean())


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
    return Grid(grid.bits, grid.scale[best], grid.zero_point[best]), place[best]


def second_order_start(task: UnitTask, config: BitConfig, settings: Settings) -> None:
    """Puts roundings on the layers of a unit, one after another, each for the inputs that those before it leave, and of
    the weight that makes up for them."""
    for name, layer in task.layers.items():
        if isinstance(layer, Embedding):  # its rows are read one at a time: there is nothing to make up for
            place_nearest(layer, config[name].w, settings)
            continue
        moments, weight, shift = compensated(task, name)
        grid, place, bias = second_order_rounding(
            weight, config[name].w, moments, config[name].w in settings.symmetric, task.metrics.get(name)
        )
        bias_of(layer).data = bias_of(layer).data + shift + bias
        learn_rounding(layer, make_rounding(settings.rounding, place, grid))


def nearest_start(task: UnitTask, config: BitConfig, settings: Settings) -> None:
    """Puts roundings on the layers of a unit that stand where the weights stand, on the grids with the least error."""
    for name, layer in task.layers.items():
        place_nearest(layer, config[name].w, settings)


def place_nearest(layer: Layer, bits: int, settings: Settings) -> None:
    """Puts a rounding on a layer that stands where its weight stands."""
    weight = layer.weight.detach()
    grid = search_grid(weight, bits, symmetric=bits in settings.symmetric)
    learn_rounding(layer, make_rounding(settings.rounding, codes_at(weight, grid), grid))
