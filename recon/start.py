"""The second-order start: every layer rounded so that its output moves least for the inputs that it really gets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hwmodel import BitConfig
from recon.attach import Layer, attach, bias_of
from recon.moments import gather_moments, mean_output
from recon.network import Unit
from recon.obq import place_obq
from recon.quantizer import decode, search_grid
from recon.rounding import RoundingName, make_rounding


def second_order_start(
    unit: Unit, layers: Mapping[str, Layer], x: Tensor, config: BitConfig, rounding: RoundingName
) -> None:
    """Puts roundings on the layers of `unit`, one after another, each for the inputs that those before it leave.

    `x` (N, …) are the unit's inputs. A grid is searched with the input power of each weight as its importance, codes
    by `place_obq`, and the mean error of the outputs is taken out by the bias.
    """
    for name, layer in layers.items():
        moments = gather_moments(unit.module, {name: layer}, x)
        moment, weight = moments.moment(name), layer.weight.detach()
        flat, power = weight.flatten(1), moment.diagonal(dim1=1, dim2=2)
        grid = search_grid(flat, config[name].w, power.repeat_interleave(len(flat) // len(power), 0))
        place = place_obq(flat, grid, moment)
        error = decode(place.round(), grid) - flat
        bias_of(layer).data = bias_of(layer).data - mean_output(error, moments.mean(name))
        attach(layer, make_rounding(rounding, place.view_as(weight), grid))
