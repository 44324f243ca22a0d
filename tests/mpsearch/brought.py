"""Networks as users bring them, each the same function as `base` unless its name says otherwise: a factory a case."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

SIZE = (3, 16, 16)


class Res(nn.Module):
    def __init__(self, width: int, conv: type[nn.Conv2d]) -> None:
        super().__init__()
        self.a, self.b = (conv(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.n1, self.n2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.n2(self.b(F.relu(self.n1(self.a(x))))))


class Small(nn.Module):
    """A stem, a residual block, a classifier."""

    def __init__(self, classes: int = 5, conv: type[nn.Conv2d] = nn.Conv2d, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.res, self.fc = Res(8, conv), nn.Linear(8, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.res(self.stem(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def made(kind: type[nn.Module] = Small, *args: Any, **options: Any) -> Any:
    """A network with the weights of `base`, as far as it has them."""
    torch.manual_seed(0)
    plain = Small(*args, **{name: value for name, value in options.items() if name != "conv"})
    with torch.no_grad():
        for norm in (plain.stem[1], plain.res.n1, plain.res.n2):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
        plain.fc.weight *= 10
    model = kind(*args, **options)
    model.load_state_dict(plain.state_dict(), strict=False)
    return model.eval()


def base() -> nn.Module:
    return made()


def _each(model: nn.Module, change: Callable[[nn.Module], Any]) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            change(module)
    return model.eval()


def weight_norm_old() -> nn.Module:
    return _each(made(), nn.utils.weight_norm)


def weight_norm() -> nn.Module:
    return _each(made(), nn.utils.parametrizations.weight_norm)


def prune_masks() -> nn.Module:
    return _each(made(), lambda module: torch.nn.utils.prune.l1_unstructured(module, "weight", 0.4))


def pruned_for_good() -> nn.Module:
    def change(module: Any) -> None:
        torch.nn.utils.prune.remove(torch.nn.utils.prune.l1_unstructured(module, "weight", 0.4), "weight")

    return _each(made(), change)


class OnlySuper(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def only_super() -> nn.Module:
    return made(conv=OnlySuper)


class SamePadding(nn.Conv2d):
    """Padding computed from the input's size, as TensorFlow does; the stem's is another than torch's."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s in zip(x.shape[-1:-3:-1], self.kernel_size, self.stride, strict=True):
            need = max((math.ceil(size / s) - 1) * s + k - size, 0)
            pads += [need // 2, need - need // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


def tf_same() -> nn.Module:
    return made(conv=SamePadding)


class Shifted(Small):
    """The same padding, written plainly: one row and column behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem[0].padding = (0, 0)

    def features(self, x: Tensor) -> Tensor:
        return super().features(F.pad(x, (0, 1, 0, 1)))


def tf_same_plainly() -> nn.Module:
    return made(Shifted)


class NoGrad(Small):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def no_grad_forward() -> nn.Module:
    return made(NoGrad)


class Inference(Small):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def inference_forward() -> nn.Module:
    return made(Inference)


class Frozen(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            f = self.features(x)
        return self.fc(f.detach())


def frozen_backbone() -> nn.Module:
    return made(Frozen)


class Switches(Small):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return super().forward(x)


def grad_switched_off() -> nn.Module:
    return made(Switches)


class Autocast(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


def autocast_inside() -> nn.Module:
    return made(Autocast)


class FiveDimensions(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("five", torch.zeros(1, 1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.five.flatten()


def five_dims() -> nn.Module:
    return made(FiveDimensions)


class Masked(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mask.exp()[0]


def inf_mask() -> nn.Module:
    return made(Masked)


class Printing(Small):
    def forward(self, x: Tensor) -> Tensor:
        print("input", tuple(x.shape))
        return super().forward(x)


def prints() -> nn.Module:
    return made(Printing)


class Unused(Small):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(8, 2000)


def unused_head() -> nn.Module:
    return made(Unused)


def data_parallel() -> nn.Module:
    return nn.DataParallel(made())


def compiled() -> Any:
    return torch.compile(made())


def exported() -> nn.Module:
    return torch.export.export(made(), (torch.randn(2, *SIZE),)).module()


def exported_program() -> Any:
    return torch.export.export(made(), (torch.randn(2, *SIZE),))


def half() -> nn.Module:
    """Weights that halves hold, so that nothing is lost."""
    model: nn.Module = made().half()
    return model


def half_plainly() -> nn.Module:
    return half().float()


class Wraps(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.net = wrap(made())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


def wraps_parallel() -> nn.Module:
    return Wraps(nn.DataParallel).eval()


def wraps_compiled() -> nn.Module:
    return Wraps(torch.compile).eval()


def wraps_scripted() -> nn.Module:
    return Wraps(torch.jit.script).eval()


class Held(Small):
    """A weight that is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.k = torch.eye(8)

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) @ self.k


def held_tensor() -> nn.Module:
    return made(Held)


class Conditional(Small):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.cond(x.sum() > 0, super().forward, lambda x: 2 * self.fc(self.features(x)), (x,))
        return found


def conditional() -> nn.Module:
    return made(Conditional)


class InPlace(Small):
    """Normalises its input in place, as much inference code does."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.2).mul_(1.25)
        return super().forward(x)


def inplace_input() -> nn.Module:
    return made(InPlace)


class OutOfPlace(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 0.2) * 1.25)


def outofplace_input() -> nn.Module:
    return made(OutOfPlace)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.fc = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.n(self.a(x))).mean((2, 3)))


def lazy() -> nn.Module:
    return Lazy()


def lazy_run() -> nn.Module:
    """The lazy network as it is after a batch."""
    torch.manual_seed(0)
    model = Lazy().eval()
    with torch.no_grad():
        model(torch.zeros(2, *SIZE))
    return model


def one_logit() -> nn.Module:
    return made(Small, 1)


def gray() -> nn.Module:
    return made(Small, channels=1)


class McDropout(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.features(x), 0.3))


def mc_dropout() -> nn.Module:
    return made(McDropout)


class OneAtATime(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).view(1, 8))


def batch_one() -> nn.Module:
    return made(OneAtATime)


class Numpy(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.from_numpy(self.features(x).detach().cpu().numpy().clip(0, 2)))


def numpy_inside() -> nn.Module:
    return made(Numpy)


class Branch(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else 2 * x)


def branch() -> nn.Module:
    return made(Branch)


class Two(Small):
    def forward(self, x: Tensor) -> Any:
        f = self.features(x)
        return self.fc(f), self.fc(2 * f)


def two_outputs() -> nn.Module:
    return made(Two)


class Locked(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def locked() -> nn.Module:
    return made(Locked)


def scripted() -> Any:
    return torch.jit.script(made())


def meta() -> nn.Module:
    with torch.device("meta"):
        return Small()


def quantized() -> Any:
    return torch.ao.quantization.quantize_dynamic(made(), {nn.Linear}, dtype=torch.qint8)


class Signs(Small):
    """A binary activation: no gradient reaches the layers in front of it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sign(self.res(self.stem(x)) - 1).mean((2, 3)))


def signs() -> nn.Module:
    return made(Signs)
