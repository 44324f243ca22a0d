"""Linear bottlenecks in a basis in which they lose less when they are rounded: the same function, other weights.

Between the projection of an inverted residual, the shortcuts it is added to, and the expansions that read the sum there
is nothing but linear maps. Any invertible matrix R may stand there: R W for the weights that write, W R⁻¹ for those
that read. (Rotations of transformers, as in QuaRot, Ashkboos et al., NeurIPS 2024, arXiv 2404.00456, use the same
freedom; the balance is that of SmoothQuant's scales, Xiao et al., ICML 2023, arXiv 2211.10438, for all directions.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from recon.compute.arithmetic import channels_last
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.patterns import calls_one_of, is_plain_addition
from recon.quantizers.learned import bias_of

LEAST = 1e-4  # of the mean power of a direction: what is hardly written or read is not blown up


@dataclass(frozen=True, slots=True)
class Stream:
    """Tensors that layers write and that, or sums of which, only layers read."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]


@torch.no_grad()
def balanced(network: Network) -> Network:
    """A network that computes the same, with every linear stream in a balanced basis; `network` itself where there are
    no streams.

    K is the mean of W Wᵀ over the weights that write, G that of Wᵀ W over those that read, each divided by its trace.
    A grid a row makes errors in proportion to the power of the rows: rounding adds up to tr(R K Rᵀ) · tr(R⁻ᵀ G R⁻¹) at
    most, which is least where both are the same matrix, at R = Q (K⁻¹ # G)^½ with # the geometric mean of matrices.
    Q is a random rotation, always the same: it makes channels alike and the weights normally distributed.
    """
    streams = linear_streams(network)
    if not streams:
        return network
    result, generator = network.copy(), torch.Generator().manual_seed(0)
    for stream in streams:
        writers, readers = ([result.layer(name) for name in names] for names in (stream.writers, stream.readers))
        written = torch.stack([_moment(_weight(layer)) for layer in writers])
        read = torch.stack([_moment(_weight(layer).transpose(0, 1)) for layer in readers])
        stretch = _balance(written.mean(0), read.mean(0))
        rotation, _ = torch.linalg.qr(torch.randn(stretch.shape, generator=generator, dtype=stretch.dtype))
        basis = rotation @ stretch
        inverse = torch.linalg.inv(basis)
        for layer in writers:
            _put(layer, torch.einsum("ij,jk...->ik...", basis, _weight(layer)))
            bias_of(layer).data = (basis @ bias_of(layer).double().cpu()).to(bias_of(layer))
        for layer in readers:
            _put(layer, torch.einsum("ij...,jk->ik...", _weight(layer), inverse))
    return result


def linear_streams(network: Network) -> list[Stream]:
    """The streams of a network, of lone layers without groups."""
    free = {spec.name for spec in network.lone_layers() if spec.groups == 1 and spec.kind in ("conv", "linear")}
    if not free:
        return []
    streams: list[Stream] = []
    for node in network.module.graph.nodes:
        if calls_one_of(node, free) and not any(node.target in stream.writers for stream in streams):
            stream = _from(node, free)
            if stream is not None and _fits(stream, network):
                streams.append(stream)
    return streams


def _from(writer: fx.Node, free: set[str]) -> Stream | None:
    """The stream that `writer` writes; None where something reads or writes it that is not linear, or no free layer."""
    writers, readers, seen, todo = [], [], {writer}, [writer]
    while todo:
        node = todo.pop()
        writes = calls_one_of(node, free)
        writers += [node] if writes else []
        near = [user for user in node.users if not calls_one_of(user, free)]
        readers += [user for user in node.users if calls_one_of(user, free)]
        near += [] if writes else node.all_input_nodes
        for other in near:
            adds = is_plain_addition(other) and len(other.all_input_nodes) == 2  # no constant
            if not adds and (other in node.users or not calls_one_of(other, free)):
                return None
            if other not in seen:
                seen.add(other)
                todo.append(other)
    names = [tuple(dict.fromkeys(str(node.target) for node in nodes)) for nodes in (writers, readers)]
    return Stream(*names)


def _fits(stream: Stream, network: Network) -> bool:
    """All layers are of one kind, and agree on a number of channels, two or more."""
    writers, readers = ([network.layer(name) for name in names] for names in (stream.writers, stream.readers))
    kinds = {(type(layer), layer.weight.dim()) for layer in (*writers, *readers)}
    channels = {len(layer.weight) for layer in writers} | {layer.weight.shape[1] for layer in readers}
    return bool(readers) and len(kinds) == len(channels) == 1 < max(channels)


def _weight(layer: Layer) -> Tensor:
    return layer.weight.detach().double().cpu()


def _put(layer: Layer, weight: Tensor) -> None:
    layer.weight.data = channels_last(weight.to(layer.weight))


def _moment(weight: Tensor) -> Tensor:
    """W Wᵀ (O, O) of a weight (O, …), its trace O."""
    moment = weight.flatten(1) @ weight.flatten(1).T
    return moment * (len(moment) / moment.trace().clamp_min(1e-30))


def _balance(written: Tensor, read: Tensor) -> Tensor:
    """(K⁻¹ # G)^½ of second moments K and G, whose traces are their size."""
    identity = LEAST * torch.eye(len(written), dtype=written.dtype)
    root, inverse = (_power(written + identity, exponent) for exponent in (0.5, -0.5))
    return _power(inverse @ _power(root @ (read + identity) @ root, 0.5) @ inverse, 0.5)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a positive definite matrix."""
    values, axes = torch.linalg.eigh(matrix)
    result: Tensor = (axes * values.pow(exponent)) @ axes.T
    return result
