"""Small networks of every kind that is to be captured: each with samples and the likelihood of its outputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from recon.graph.samples import Samples
from recon.likelihood.heads import Bernoulli, Categorical, Gaussian
from recon.likelihood.likelihood import Likelihood

CLASSES = Likelihood((Categorical(),))
PIXELS = Likelihood((Categorical(dim=1),))
VALUES = Likelihood((Gaussian(),))
SHARPER = 8.0  # by that much logits of random weights must grow to tell classes apart


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Smooth noise (N, C, *size) or (N, …)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DoubleConv(nn.Module):
    """Two convolutions, the block of a U-Net."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs), conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class UNet(nn.Module):
    """Two scales down and up again with transposed convolutions; maps of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = DoubleConv(3, 8), DoubleConv(8, 16), DoubleConv(16, 16)
        self.up2, self.merge2 = nn.ConvTranspose2d(16, 16, 2, 2), DoubleConv(32, 8)
        self.up1, self.merge1 = nn.ConvTranspose2d(8, 8, 2, 2), DoubleConv(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.merge2(torch.cat([self.up2(x), two], 1))
        x = self.merge1(torch.cat([self.up1(x), one], 1))
        return self.head(x)


class TwoInputs(nn.Module):
    """An image and a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.numbers = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image), self.numbers(numbers)], 1))


class TwoHeads(nn.Module):
    """Classes and values in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classes, self.values = nn.Linear(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"logits": self.classes(x), "values": self.values(x)}


class OneChannel(nn.Sequential):
    """A classifier of images with one channel."""

    def __init__(self) -> None:
        super().__init__(conv(1, 8, 2), conv(8, 16, 2), nn.Flatten(), nn.Linear(16 * 16, 4))


class Sound(nn.Module):
    """Dilated one-dimensional convolutions with a residual each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 12, 9, 2, 4)
        self.dilated = nn.ModuleList(nn.Conv1d(12, 12, 3, padding="same", dilation=2**k) for k in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(12) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer, norm in zip(self.dilated, self.norms, strict=True):
            x = x + F.relu(norm(layer(x)))
        return self.head(x.mean(-1))


class Video(nn.Sequential):
    """Three-dimensional convolutions, factorised ones and a transposed one."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.Conv3d(8, 8, (3, 1, 1), 1, (1, 0, 0), groups=2),
            nn.ReLU(),
            nn.ConvTranspose3d(8, 8, 2, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )


class BareAttention(nn.Module):
    """Attention whose weights are parameters of its own, applied by `F.linear` and `@`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Parameter(torch.randn(3 * width, width) / math.sqrt(width))
        self.qkv_bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Parameter(torch.randn(width, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = F.linear(x, self.qkv, self.qkv_bias).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        return F.linear((attention @ v).transpose(1, 2).reshape(n, length, width), self.out)


class BareBlock(nn.Module):
    """Attention and an MLP of bare parameters, each with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = BareAttention(width, 2)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.w1 = nn.Parameter(torch.randn(2 * width, width) / math.sqrt(width))
        self.w2 = nn.Parameter(torch.randn(width, 2 * width) / math.sqrt(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + F.linear(F.gelu(F.linear(self.norm2(x), self.w1)), self.w2)


class BareTransformer(nn.Module):
    """Two blocks of bare parameters over a sequence of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(BareBlock(16) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Basic(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Exchange(nn.Module):
    """HRNet's unit: a residual block on either scale, then each scale gets what the other has."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.fine, self.coarse = Basic(narrow), Basic(wide)
        self.down = nn.Sequential(nn.Conv2d(narrow, wide, 3, 2, 1, bias=False), nn.BatchNorm2d(wide))
        self.up = nn.Sequential(nn.Conv2d(wide, narrow, 1, bias=False), nn.BatchNorm2d(narrow))

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        fine, coarse = self.fine(scales[0]), self.coarse(scales[1])
        up = F.interpolate(self.up(coarse), size=fine.shape[2:], mode="nearest")
        return [F.relu(fine + up), F.relu(coarse + self.down(fine))]


class HRNet(nn.Module):
    """Two exchange units over two scales that are alive all along."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.transition = conv(3, 8, 2), conv(8, 16, 2)
        self.stages = nn.ModuleList(Exchange(16, 8) for _ in range(2))
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scales = [x, self.transition(x)]
        for stage in self.stages:
            scales = stage(scales)
        return self.head(torch.cat([scale.mean((2, 3)) for scale in scales], 1))


class SuperResolution(nn.Module):
    """Pixels from channels, and the enlarged image added."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, 1, 1)
        self.body = nn.Sequential(*(Basic(12) for _ in range(2)))
        self.tail = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(F.relu(self.head(x)))) + F.interpolate(x, scale_factor=2, mode="bilinear")


class Shared(nn.Module):
    """One block run three times, and a second layer with a weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(6, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.twin = nn.Linear(16, 16)
        self.twin.weight = self.block[0].weight
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(F.relu(self.twin(x)))


class GroupNormed(nn.Module):
    """Group norms, which stay."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.SiLU()),
            *(nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU()),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class WeightNormed(nn.Module):
    """Weight norm by hooks and by parametrization, and a spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.hooked = nn.utils.weight_norm(nn.Conv1d(2, 12, 5, 2, 2))
        self.parametrized = parametrizations.weight_norm(nn.ConvTranspose1d(12, 12, 4, 2, 1))
        self.spectral = parametrizations.spectral_norm(nn.Linear(12, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.parametrized(F.leaky_relu(self.hooked(x))))
        return self.head(F.relu(self.spectral(x.mean(-1))))


class MaskedEncoder(nn.Module):
    """Encoder layers of torch with a mask that is alive all along."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).to(x.dtype)
        return {"logits": self.head((x * weight).sum(1) / weight.sum(1))}


class RMSNorm(nn.Module):
    """A norm by the root of the mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (N, heads, length, width)."""
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


class DecoderLayer(nn.Module):
    """A Llama layer: grouped-query attention with rotary tables, and a gated MLP."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, size = heads, groups, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, groups * size, bias=False)
        self.v_proj = nn.Linear(width, groups * size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down_proj = nn.Linear(2 * width, width, bias=False)
        self.input_norm, self.post_norm = RMSNorm(width), RMSNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        n, length, _ = x.shape
        h = self.input_norm(x)
        q = self.q_proj(h).view(n, length, self.heads, -1).transpose(1, 2)
        k = self.k_proj(h).view(n, length, self.groups, -1).transpose(1, 2)
        v = self.v_proj(h).view(n, length, self.groups, -1).transpose(1, 2)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (k, v))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(n, length, -1)
        x = x + self.o_proj(h)
        h = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Decoder(nn.Module):
    """A language model of token ids; the head's weight is the embedding's."""

    def __init__(self, width: int = 16, words: int = 13) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.layers = nn.ModuleList(DecoderLayer(width, 4, 2) for _ in range(2))
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)
        self.lm_head.weight = self.embed_tokens.weight
        self.register_buffer("rates", 100.0 ** (-torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        length = input_ids.shape[1]
        x = self.embed_tokens(input_ids)
        angles = torch.outer(torch.arange(length, device=x.device).to(x.dtype), self.rates.to(x.dtype))
        cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mask = causal[None, None] & attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.lm_head(self.norm(x))


class Half(nn.Sequential):
    """A classifier, held in another precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(conv(3, 8, 2), Basic(8), conv(8, 16, 2), nn.Flatten(), nn.Linear(16 * 16, 4))
        self.to(dtype)


def images(count: int) -> Tensor:
    return maps(count, 3, 16, 16)


def token_ids(count: int) -> Tensor:
    return torch.randint(0, 11, (count, 10), generator=torch.Generator().manual_seed(0))


def masks(count: int) -> Tensor:
    """Between 5 and 10 tokens each."""
    lengths = torch.randint(5, 11, (count, 1), generator=torch.Generator().manual_seed(1))
    return torch.arange(10) < lengths


def settled(model: nn.Module, samples: Any) -> nn.Module:
    """The model in eval mode, its batch norms having seen samples and its logits far from uniform."""
    call = Samples.of(samples).call
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None
    with torch.no_grad():
        for _ in range(3):
            model.train()(*call[0], **call[1])
        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        if not any(
            isinstance(module, nn.Embedding) and module.weight is layers[-1].weight for module in model.modules()
        ):
            layers[-1].weight *= SHARPER
    return model.eval().requires_grad_(False)


Zoo = dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], Likelihood]]

SMALL: Zoo = {
    "u-net": (UNet, images, PIXELS),
    "two inputs": (TwoInputs, lambda n: (images(n), maps(n, 5, seed=1)), CLASSES),
    "two heads": (TwoHeads, images, Likelihood((Categorical("logits"), Gaussian("values", 0.3)))),
    "one channel": (OneChannel, lambda n: maps(n, 1, 16, 16), CLASSES),
    "sound": (Sound, lambda n: maps(n, 2, 96), CLASSES),
    "video": (Video, lambda n: maps(n, 3, 4, 12, 12), CLASSES),
    "bare attention": (BareTransformer, lambda n: maps(n, 7, 6), CLASSES),
    "hrnet": (HRNet, images, CLASSES),
    "pixel shuffle": (SuperResolution, lambda n: maps(n, 3, 8, 8), VALUES),
    "shared weights": (Shared, lambda n: maps(n, 6), CLASSES),
    "group norm": (GroupNormed, images, CLASSES),
    "weight norm": (WeightNormed, lambda n: maps(n, 2, 48), CLASSES),
    "bfloat16": (lambda: Half(torch.bfloat16), lambda n: images(n).bfloat16(), CLASSES),
    "float64": (lambda: Half(torch.float64), lambda n: images(n).double(), CLASSES),
    "data parallel": (lambda: nn.DataParallel(OneChannel()), lambda n: maps(n, 1, 16, 16), CLASSES),
    "masked encoder": (
        MaskedEncoder,
        lambda n: {"ids": token_ids(n), "mask": masks(n)},
        Likelihood((Categorical("logits"),)),
    ),
    "decoder": (
        Decoder,
        lambda n: {"input_ids": token_ids(n), "attention_mask": torch.ones(n, 10, dtype=torch.long)},
        Likelihood((Categorical(dim=-1),)),
    ),
    "binary maps": (
        lambda: nn.Sequential(conv(3, 8), nn.Conv2d(8, 2, 1)),
        images,
        Likelihood((Bernoulli(),)),
    ),
}
