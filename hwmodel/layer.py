"""What a layer is: shapes only, no weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hwmodel.errors import InputError

LayerKind = Literal["conv", "linear", "transposed", "embedding"]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One quantizable layer; a linear layer is a 1×1 convolution on a map of `positions` × 1 pixels.

    Sound is a map of `length` × 1 pixels; of volumes, depth and height are one dimension. A transposed convolution
    applies its kernel at every input pixel. An embedding holds `out_channels` rows of `in_channels` weights, which
    `positions` ids read.
    `block` names the reconstruction unit that the layer belongs to. Layers with the same `tie` share one
    gene: they always get the same precision. `uses` counts the calls of the layer in one forward pass.
    `in_size` and `out_size` are (height, width) of one image's feature map. With `channel_steps`, inputs that are
    quantized have a step for every channel.
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    block: str
    tie: str
    uses: int = 1
    channel_steps: bool = False

    def __post_init__(self) -> None:
        for field in ("in_channels", "out_channels", "groups", "uses"):
            if getattr(self, field) < 1:
                raise InputError(f"layer {self.name!r}: {field} must be at least 1, got {getattr(self, field)}")
        for field in ("kernel", "stride", "dilation"):
            if min(getattr(self, field)) < 1:
                raise InputError(f"layer {self.name!r}: {field} must be at least 1, got {getattr(self, field)}")
        if min(*self.in_size, *self.out_size) < 0:
            raise InputError(f"layer {self.name!r}: feature map sizes must not be negative")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InputError(
                f"layer {self.name!r}: {self.groups} groups must divide "
                f"{self.in_channels} and {self.out_channels} channels"
            )

    @property
    def weights_per_channel(self) -> int:
        """Weights of one output channel: the length of its dot product."""
        return self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def n_weights(self) -> int:
        """Weights, biases not counted."""
        return self.out_channels * self.weights_per_channel

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, over all uses: none of an embedding."""
        height, width = self.in_size if self.kind == "transposed" else self.out_size
        return 0 if self.kind == "embedding" else self.uses * self.n_weights * height * width

    @property
    def n_biases(self) -> int:
        """Biases: one an output channel, but none of an embedding."""
        return 0 if self.kind == "embedding" else self.out_channels

    @property
    def n_activations(self) -> int:
        """Input activations of one sample and one use; the ids that an embedding reads."""
        channels = 1 if self.kind == "embedding" else self.in_channels
        return channels * self.in_size[0] * self.in_size[1]

    @property
    def n_outputs(self) -> int:
        """Output activations of one sample and one use."""
        channels = self.in_channels if self.kind == "embedding" else self.out_channels
        return channels * self.out_size[0] * self.out_size[1]

    @property
    def depthwise(self) -> bool:
        """Every output channel reads one input channel."""
        return self.groups > 1 and self.groups == self.in_channels

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSpec:
        """The inverse of `to_json`. Raises InputError where a key is unknown or missing."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            for name, like in fields.items():
                if name == "channel_steps":
                    if type(like) is not bool:
                        raise TypeError(f"{name} must be true or false, got {str(like)[:40]!r}")
                    continue
                sizes = like if isinstance(like, tuple) else () if isinstance(like, str) else (like,)
                if (isinstance(like, tuple) and len(like) != 2) or not all(type(size) is int for size in sizes):
                    raise TypeError(f"{name} must be text, a whole number or two of them, got {str(like)[:40]!r}")
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise InputError(f"not a layer description: {error}") from None


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of two activations: `macs` multiply-accumulates of one sample, which are not quantized."""

    name: str
    operation: str
    macs: int


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The L quantizable layers of a network in execution order, and what is not quantized.

    `inputs` are the shapes of one sample's tensors, (channels, height, width) of an image. `uncounted` maps the names
    of parts that are not quantized to the reason; their parameters are stored in half precision. `products` are the
    matrix products of two activations, which have no weights.
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[LayerSpec, ...]
    uncounted: tuple[tuple[str, str], ...] = ()
    products: tuple[Product, ...] = ()

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise InputError(f"layer names must be unique, got {len(names)} with {len(set(names))} distinct")

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> LayerSpec:
        return self.layers[index]

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names, in execution order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, those of products of activations among them."""
        return sum(layer.macs for layer in self.layers) + sum(product.macs for product in self.products)

    @property
    def n_weights(self) -> int:
        """Weights of all layers, biases not counted."""
        return sum(layer.n_weights for layer in self.layers)

    @property
    def genes(self) -> tuple[tuple[int, ...], ...]:
        """Layer indices of each gene, in order of first appearance: layers of one tie group share a gene."""
        groups: dict[str, list[int]] = {}
        for index, layer in enumerate(self.layers):
            groups.setdefault(layer.tie, []).append(index)
        return tuple(tuple(group) for group in groups.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, read back by `from_json`."""
        return {
            "model": self.model,
            "inputs": [list(shape) for shape in self.inputs],
            "layers": [layer.to_json() for layer in self.layers],
            "uncounted": [list(pair) for pair in self.uncounted],
            "products": [asdict(product) for product in self.products],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerTable:
        """The inverse of `to_json`. Raises InputError where a key is missing."""
        try:
            layers: Iterable[Mapping[str, Any]] = data["layers"]
            return cls(
                str(data["model"]),
                tuple(tuple(map(int, shape)) for shape in data["inputs"]),
                tuple(LayerSpec.from_json(layer) for layer in layers),
                tuple((name, reason) for name, reason in data["uncounted"]),
                tuple(Product(**product) for product in data["products"]),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise InputError(f"not a layer table: {error}") from None
