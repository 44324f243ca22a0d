"""Where reconstruction starts: by default with every layer rounded so that its output moves least for the inputs that
it really gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hwmodel import BitConfig, Precision
from recon.fit.compensation import compensated
from recon.fit.obq import (
    SWEEPS,
    descend,
    descend_all,
    descend_together,
    output_error,
    place_all,
    place_obq,
    refit_scale,
)
from recon.fit.task import UnitTask
from recon.fit.trellis import finer, trellis_rounding
from recon.graph.layers import Embedding, Layer
from recon.quantizers.coded import PER_OCTAVE, coded_grid, spread_evenly, to_log_grid
from recon.quantizers.learned import bias_of, learn_rounding
from recon.quantizers.nearest import own_grid
from recon.quantizers.rounding import make_rounding
from recon.quantizers.trellis import SHORTEST
from recon.quantizers.weights import Grid, codes_at, decode, nearby_grids, search_grid
from recon.settings import Settings
from recon.statistics.moments import InputMoments, mean_output

TRUSTED, MOST_SHARED = 0.15, 2.0  # 0.3 is no better in ResNet-20, where 0 leaves 1.15 times the KL in the same bytes
SEEN = 8  # inputs for every output, from which its importance is known
SHORT = 64  # weights of an output channel, up to which many grids are tried: there it is cheap and pays most
PROMISING = 16  # of the grids tried in a channel that descend
TRELLIS_MOST = 5.0
TRIED = 2**16  # weights at a time that many grids are tried for, at one width


Rounded = tuple[Grid, Tensor, Tensor]
Tried = tuple[Tensor, Grid, Tensor]  # rows of a weight (R, K), grids for them, and where they stand there (R, K)


def second_order_rounding(
    weight: Tensor,
    precision: Precision,
    moments: InputMoments,
    symmetric: bool = False,
    metric: Tensor | None = None,
    widened: float = 0.0,
    final: bool = False,
) -> Rounded:
    """The grid of a weight (O, …) for inputs with these `moments`, its continuous codes (O, …), and a bias (O,).

    The grid is searched with the input variance of each weight as its importance; the codes are those of `place_obq`,
    then of `descend` and, where there is the `metric` (O, O) of the outputs and no fewer inputs have been seen than
    there are outputs, of `descend_together` (by fewer, channels make up for less than nothing); the scales are refitted
    to them each time. The bias, to be added, takes out the mean error of the outputs, so that only their
    variance counts. Where the precision has a rate, the grid is that of `coded_grid`, its steps `widened` by so many
    octaves on average, and what is rounded is `shrunk`. Where the rounding is `final`, its codes are on a path of the
    trellis if the rate is `TRELLIS_MOST` at most, beyond which 8 bits do not hold them, and rows are long enough; what
    is rounded to be judged alone takes half of the time.
    """
    if not precision.rate:
        middle = (precision.w,) if symmetric else ()
        return second_order_roundings(weight, [precision], moments, middle, metric, final)[0]
    flat, hessian = weight.flatten(1), moments.hessian()
    metric = _known(metric, moments)
    grid = widen(coded_grid(flat, precision.rate), widened, flat)
    if metric is not None and moments.count >= SEEN * len(flat):
        grid = shared_out(grid, metric.diagonal(), flat)
    if moments.wide:
        place = _round_blocks(flat, grid, hessian, moments.patches())
    else:
        wanted, ridged = shrunk(flat, grid, hessian)
        if final and precision.rate <= TRELLIS_MOST and flat.shape[1] >= SHORTEST:
            grid, place = trellis_rounding(wanted, widen(grid, finer(precision.rate), flat), hessian, ridged, metric)
        else:
            ((grid, place),) = _round_channels(wanted, [grid], ridged, metric, final)
        grid = refit_scale(flat, place.round(), grid, hessian)
    return _unbiased(weight, replace(grid, scale=to_log_grid(grid.scale)), place, moments)


def second_order_roundings(
    weight: Tensor,
    precisions: Sequence[Precision],
    moments: InputMoments,
    symmetric: Collection[int] = (),
    metric: Tensor | None = None,
    final: bool = False,
) -> list[Rounded]:
    """`second_order_rounding` at several widths, none of them a rate, to the same bits: what does not depend on the
    width is done once. Weights of `symmetric` bits have grids with the zero-point in the middle."""
    flat, hessian = weight.flatten(1), moments.hessian()
    metric = _known(metric, moments)
    variance = hessian.diagonal(dim1=1, dim2=2).reshape(-1, flat.shape[1])
    importance = variance.repeat_interleave(len(flat) // len(variance), 0)
    grids = []
    for precision in precisions:
        middle = precision.w in symmetric
        grid = search_grid(flat, precision.w, importance, middle, halves=True)
        grids.append(nearby_grids(grid, middle) if flat.shape[1] <= SHORT else grid)
    if moments.wide:
        patches = moments.patches()
        found = [(grid, _round_blocks(flat, grid, hessian, patches)) for grid in grids]
    else:
        found = _round_channels(flat, grids, hessian, metric, final)
    return [_unbiased(weight, grid, place, moments) for grid, place in found]


def _known(metric: Tensor | None, moments: InputMoments) -> Tensor | None:
    """The metric (O, O) of outputs; None by fewer inputs than there are of them."""
    return metric if metric is not None and moments.count >= len(metric) else None


def _unbiased(weight: Tensor, grid: Grid, place: Tensor, moments: InputMoments) -> Rounded:
    """A grid and continuous codes (O, K) with the bias that takes out their mean error."""
    error = decode(place.round(), grid) - weight.flatten(1)
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
    """The grid with steps that are wider by so many octaves, as far as codes do not go beyond the ends: as scales are
    powers of 2^(1/32), a part of the channels, spread evenly, gets one more of them than the others."""
    spread = spread_evenly(len(grid.scale)).to(weight.device)
    wider = torch.floor(PER_OCTAVE * octaves + spread) / PER_OCTAVE
    farthest = weight.flatten(1).abs().amax(1)
    return replace(grid, scale=to_log_grid(grid.scale * wider.exp2().float(), farthest))


def _round_channels(
    weight: Tensor, grids: Sequence[Grid], hessian: Tensor, metric: Tensor | None, final: bool
) -> list[tuple[Grid, Tensor]]:
    """For each of `grids` the grid and the continuous codes (O, K) of weight (O, K) that leave each output channel's
    least error under `hessian` (G, K, K), of the grids that it has for the channel: as many for every channel, one
    after another. Where there is a `metric` (O, O), channels act together, twice where this is `final`: the second time
    takes 1 to 3 % of the error."""
    if len(grids[0].scale) > len(weight):
        tried = _promising(weight, grids, hessian)
    else:
        tried = list(zip([weight] * len(grids), grids, place_all([weight] * len(grids), grids, hessian), strict=True))
    weights = [rows for rows, *_ in tried]
    grids = [refit_scale(rows, place.round(), grid, hessian) for rows, grid, place in tried]
    places = descend_all(weights, [place.round() for *_, place in tried], grids, hessian)
    rounded = zip(weights, grids, places, strict=True)
    grids = [refit_scale(rows, place.round(), grid, hessian) for rows, grid, place in rounded]
    best = [_best(*one, len(weight), 1, hessian) for one in zip(weights, grids, places, strict=True)]
    found = [(grid, place) for _, grid, place in best]
    if metric is None:
        return found
    codes = [place.round() for _, place in found]
    return descend_together(weight, codes, [grid for grid, _ in found], hessian, metric, SWEEPS if final else 1)


def _promising(weight: Tensor, grids: Sequence[Grid], hessian: Tensor) -> list[Tried]:
    """For each of `grids`, which have several for every channel of weight (O, K), the best of them after `place_obq`:
    `PROMISING` a channel. So many channels at a time that a cache holds what is tried for them."""
    tries = [len(grid.scale) // len(weight) for grid in grids]
    each = len(weight) // len(hessian)  # channels of a group
    least = 1 if len(hessian) == 1 else each
    count = least * max(1, TRIED // (least * tries[0] * weight.shape[1]))
    found: list[list[Tried]] = [[] for _ in grids]
    for first in range(0, len(weight), count):
        last = min(first + count, len(weight))
        under = hessian if len(hessian) == 1 else hessian[first // each : last // each]
        own = [
            replace(
                grid,
                scale=grid.scale[many * first : many * last],
                zero_point=grid.zero_point[many * first : many * last],
            )
            for grid, many in zip(grids, tries, strict=True)
        ]
        rows = [weight[first:last].repeat_interleave(many, 0) for many in tries]
        for at, one in enumerate(zip(rows, own, place_all(rows, own, under), strict=True)):
            found[at].append(_best(*one, last - first, min(PROMISING, tries[at]), under))
    return [_joined(parts) for parts in found]


def _best(rows: Tensor, grid: Grid, place: Tensor, channels: int, count: int, hessian: Tensor) -> Tried:
    """Of the tries for every channel, the `count` with the least error."""
    tries = len(rows) // channels
    if tries == count:
        return rows, grid, place
    error = output_error(decode(place.round(), grid) - rows, hessian).view(channels, tries)
    at = error.topk(count, largest=False, sorted=False).indices
    at = (at + tries * torch.arange(channels, device=at.device)[:, None]).flatten()
    return rows[at], replace(grid, scale=grid.scale[at], zero_point=grid.zero_point[at]), place[at]


def _joined(parts: Sequence[Tried]) -> Tried:
    """What was tried for some channels, and for others, on grids of the same bits."""
    grids = [grid for _, grid, _ in parts]
    scale, zero_point = torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero_point for grid in grids])
    rows, place = torch.cat([rows for rows, *_ in parts]), torch.cat([place for *_, place in parts])
    return rows, replace(grids[0], scale=scale, zero_point=zero_point), place


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
            final=True,
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
