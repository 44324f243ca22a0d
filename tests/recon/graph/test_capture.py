"""Whatever code a model is written in, its graph computes what the model does, on any number of samples."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from captured import counted_macs, of_images, require_same, unit_by_unit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hwmodel.errors import InputError
from recon.graph.network import capture
from recon.graph.samples import Samples, named_parts

SIZE = (3, 8, 8)


class Code(nn.Module):
    """Two convolutions, used as `how` says."""

    def __init__(self, how: Callable[[Code, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self, x).mean((2, 3)))


def in_place(m: Code, x: Tensor) -> Tensor:
    x.mul_(2).add_(1)
    x[:, 0] = 0
    y = m.a(x)
    y += 1
    F.relu(y, inplace=True)
    z = m.b(y)
    y.clamp_(max=1)
    z[:, :2] *= 2
    return z + y


def by_shape(m: Code, x: Tensor) -> Tensor:
    count, _, height, width = x.shape
    x = F.pad(x, (0, height - width)) if height != width else x
    x = m.a(x) if height % 2 == 0 else m.a(x[..., 1:])
    x = x.view(count, 4, -1).reshape(-1, 4, height, width)
    return m.b(x) / x.shape[1]


def without_gradients(m: Code, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.relu(m.a(x.detach()))
    y = m.b(x.detach().clone())
    return y + x


def as_functions(m: Code, x: Tensor) -> Tensor:
    x = F.conv2d(x, m.a.weight, m.a.bias, padding="same")
    return torch.conv2d(x.relu(), m.b.weight, None, (1, 1), (1, 1)) + m.b.bias.view(-1, 1, 1)


def by_lists(m: Code, x: Tensor) -> Tensor:
    maps = [m.a(x)]
    for _ in range(2):
        maps.append(torch.relu(maps[-1]) + len(maps))
    return m.b(torch.stack(maps).sum(0)) + sum(part.sum(1, keepdim=True) for part in maps[0].chunk(2, 1))


def of_single_samples(m: Code, x: Tensor) -> Tensor:
    """The statistics are those of each sample, the number of samples is in the arithmetic."""
    x = m.a(x) * (1 / x.size(0)) * x.shape[0]
    return m.b((x - x.mean((1, 2, 3), keepdim=True)) / x.flatten(1).std(1).view(-1, 1, 1, 1))


def with_new_tensors(m: Code, x: Tensor) -> Tensor:
    grid = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
    x = m.a(x) + grid + torch.zeros_like(x[:, :1]) + x.new_ones(x.shape[0], 1, 1, 1)
    mask = torch.arange(4).view(-1, 1, 1) < 2
    return m.b(x.masked_fill(mask, 0.0))


def strided(m: Code, x: Tensor) -> Tensor:
    x = m.a(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[..., ::2]
    return m.b(x.unflatten(1, (2, 2)).flatten(1, 2))


CODES = {
    "in place": in_place,
    "by shape": by_shape,
    "without gradients": without_gradients,
    "as functions": as_functions,
    "by lists": by_lists,
    "of single samples": of_single_samples,
    "with new tensors": with_new_tensors,
    "norms": lambda m, x: m.b(m.dropout(F.relu(m.norm(m.a(x))))),
    "strided views": strided,
    "samples last": lambda m, x: m.b(m.a(x).movedim(0, -1).tanh().movedim(-1, 0)),
}


@pytest.mark.parametrize("code", CODES)
def test_any_code_is_the_same_function(code: str) -> None:
    torch.manual_seed(0)
    model = Code(CODES[code]).train()
    nn.init.normal_(model.norm.running_mean)
    network = of_images(model, SIZE)
    assert network.table.names == ("a", "b", "head")
    assert model.training
    x = torch.randn(7, *SIZE)
    given = x.clone()
    require_same(network, model, x)
    assert torch.equal(x, given)
    assert network.table.macs == counted_macs(model, x[:1].clone())
    assert not [node for node in network.module.graph.nodes if str(node.target).endswith("_.default")]


def test_one_sample_is_enough_of_an_example() -> None:
    model, x = Code(by_shape), torch.randn(1, *SIZE)
    require_same(capture(model, x), model, torch.randn(4, *SIZE))
    assert capture(model, x).table == capture(model, (x,)).table == capture(model, Samples.of({"x": x})).table


class Branch(nn.Module):
    """The way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if float(x.sum()) > 0:  # here
            x = self.other(x)
        return x


def refusal(model: nn.Module, example: object) -> str:
    with pytest.raises(InputError) as caught:
        capture(model, example, "toy")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_branch_on_data_is_refused_with_its_line() -> None:
    with open(__file__, encoding="utf-8") as file:
        line = next(number for number, text in enumerate(file, 1) if "# here" in text)
    message = refusal(Branch(), torch.randn(2, *SIZE))
    assert message.startswith("toy cannot be exported: ")
    assert f"test_capture.py:{line}" in message


class Detector(nn.Module):
    """A network, and post-processing in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.names = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.Embedding(4, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.names((scores > float(scores.mean())).nonzero()[:, 0]) for scores in self.network(x)]


def test_the_part_that_can_be_exported_is_named() -> None:
    message = refusal(Detector(), torch.randn(2, *SIZE))
    assert "its submodule 'network' can be exported" in message


class Returns(nn.Module):
    def __init__(self, what: object) -> None:
        super().__init__()
        self.conv, self.what = nn.Conv2d(3, 4, 1), what

    def forward(self, x: Tensor) -> tuple[object, ...]:
        return self.conv(x), self.what


class Locked(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 1)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (nn.Conv2d(3, 4, 1), (1, 8, 8), r"toy does not run on .*\[3, 1, 8, 8\]: RuntimeError: "),
        (nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), SIZE, "toy does not run on"),
        (nn.ReLU(), SIZE, "toy applies no convolution, linear map or embedding"),
        (Returns(3), SIZE, "something else than tensors"),
        (Returns(None), SIZE, "something else than tensors"),
        (nn.LazyConv2d(4, 1), SIZE, "not initialised"),
        (nn.Conv2d(3, 4, 1, device="meta"), SIZE, "meta device"),
        (Locked(), SIZE, "cannot be copied"),
    ],
    ids=str,
)
def test_models_that_are_refused(model: nn.Module, size: tuple[int, ...], message: str) -> None:
    assert __import__("re").search(message, refusal(model, Samples.noise(size)))


def test_a_scripted_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Conv2d(3, 4, 1))
    assert "scripted model" in refusal(scripted, torch.randn(2, *SIZE))


def test_what_is_no_batch_is_refused() -> None:
    model = nn.Conv2d(3, 4, 1)
    assert "no tensor" in refusal(model, ())
    assert "tensors only, got a int" in refusal(model, (torch.randn(2, *SIZE), 3))
    assert "samples first, as many in each" in refusal(model, (torch.randn(2, *SIZE), torch.randn(3, 2)))


def weighted(kind: str) -> nn.Module:
    """A convolution whose weight is computed, then a batch norm, and a plain layer."""
    conv = nn.Conv2d(3, 4, 3, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "old weight norm":
            nn.utils.weight_norm(conv)
        elif kind == "old spectral norm":
            nn.utils.spectral_norm(conv)
    if kind == "weight norm":
        parametrizations.weight_norm(conv)
    elif kind == "spectral norm":
        parametrizations.spectral_norm(conv)
    elif kind == "orthogonal":
        parametrizations.orthogonal(conv)
    elif kind == "pruned":
        prune.random_unstructured(conv, "weight", 0.5)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


@pytest.mark.parametrize(
    "kind", ["weight norm", "spectral norm", "orthogonal", "old weight norm", "old spectral norm", "pruned"]
)
def test_computed_weights_are_made_plain(kind: str) -> None:
    torch.manual_seed(0)
    model = weighted(kind)
    x = torch.randn(5, *SIZE)
    model(x)  # in training: statistics
    network = of_images(model, SIZE)
    assert network.table.names == ("0", "4")
    assert network.table.uncounted == ()
    require_same(network, model, x)
    assert kind != "pruned" or 40 < int((network.layer("0").weight == 0).sum()) < 70
    left = {name for name, _ in network.module.named_parameters()}
    assert left == {"0.weight", "0.bias", "4.weight", "4.bias"}


class Standardised(nn.Conv2d):
    """Computes with another weight than the one that it holds."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.flatten(1).std(1).view(-1, 1, 1, 1), self.bias)


def test_a_weight_that_the_code_computes_is_the_weight_that_is_applied() -> None:
    model = nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 2, 1))
    network = of_images(model, SIZE)
    assert network.table.names == ("0", "1")
    assert network.table.uncounted == ()
    assert torch.allclose(network.layer("0").weight.mean((1, 2, 3)), torch.zeros(4), atol=1e-6)
    require_same(network, model, torch.randn(3, *SIZE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_precision_become_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Code(by_lists).to(dtype)
    network = capture(model, torch.randn(3, *SIZE, dtype=dtype))
    assert {tensor.dtype for tensor in network.module.state_dict().values()} == {torch.float32}
    x = torch.randn(5, *SIZE, dtype=dtype)
    with torch.no_grad():
        found, expected = network.model(x), model.eval()(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected.float(), atol=1e-6 if dtype == torch.float64 else 0.05)


def test_wrappers_are_taken_off() -> None:
    torch.manual_seed(0)
    model, x = Code(by_shape), torch.randn(5, *SIZE)
    plain = of_images(model, SIZE)
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        network = of_images(wrapped, SIZE)
        assert network.table == plain.table
        assert torch.equal(network.model(x), plain.model(x))


class TwoInputs(nn.Module):
    """An image and some numbers about it; maps, a list and a tuple come out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers, self.head = nn.Conv2d(3, 4, 3), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, image: Tensor, numbers: Tensor, scale: float = 2.0) -> dict[str, object]:
        x = self.image(image)
        y = self.numbers(numbers)[:, :, None, None] * scale
        z = torch.relu(x + y)
        return {"maps": [z, x], "logits": self.head(z.mean((2, 3))), "pair": (y.flatten(1), numbers)}


def test_inputs_and_outputs_are_pytrees() -> None:
    torch.manual_seed(0)
    model, image, numbers = TwoInputs(), torch.randn(4, *SIZE), torch.randn(4, 5)
    names = ("maps.0", "maps.1", "logits", "pair.0", "pair.1")
    for example in ((image, numbers), {"image": image, "numbers": numbers}):
        network = capture(model, example)
        assert network.names == names
        assert network.table.inputs == ((3, 8, 8), (5,))
        require_same(network, model, *network.leaves(Samples.of(example)))
        args, kwargs = Samples.of(example).call
        found, expected = network.model(*args, **kwargs), model(*args, **kwargs)
        assert list(found) == list(expected)
        assert isinstance(found["maps"], list)
        assert isinstance(found["pair"], tuple)
        assert all(torch.allclose(z, named_parts(expected)[name], atol=1e-6) for name, z in named_parts(found).items())
    with pytest.raises(InputError, match="got"):
        network.model(image)
    with pytest.raises(InputError, match="takes"):
        network.leaves(Samples.of((image, numbers)))


class KeywordsInAnyOrder(TwoInputs):
    def forward(self, image: Tensor, numbers: Tensor, *, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        x = self.image(image) + self.numbers(numbers)[:, :, None, None]
        return self.head((x if mask is None else x * mask[:, None, None, None]).mean((2, 3)))


def test_keyword_arguments_come_in_any_order() -> None:
    torch.manual_seed(0)
    model = KeywordsInAnyOrder()
    batch = {"mask": torch.ones(3), "numbers": torch.randn(3, 5), "image": torch.randn(3, *SIZE)}
    network = capture(model, batch)
    other = dict(reversed([(key, 2 * value) for key, value in batch.items()]))
    assert torch.allclose(network.model(**batch), model(**batch), atol=1e-6)
    leaves = network.leaves(Samples.of(other))
    assert torch.allclose(network.module(*leaves)[0], model(**other), atol=1e-6)


class Tied(nn.Module):
    """A language model whose head is its table of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.words(ids))))


def test_tied_layers_share_a_gene_and_are_layers_of_their_own() -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(0, 9, (4, 6))
    network = capture(model, ids)
    assert [(spec.name, spec.kind, spec.tie) for spec in network.table] == [
        ("words", "embedding", "words"),
        ("body", "linear", "body"),
        ("head", "linear", "words"),
    ]
    assert network.table.genes == ((0, 2), (1,))
    assert [spec.name for spec in network.lone_layers()] == ["body"]
    require_same(network, model, ids)


class Attention(nn.Module):
    """Attention by a module, and by hand from bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.MultiheadAttention(8, 2)
        self.other = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True, bias=False)
        self.qkv, self.bias = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(24))
        self.out = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.module(*3 * [x.transpose(0, 1)])
        x = x + y.transpose(0, 1)
        x = x + self.other(x, memory, memory, need_weights=False)[0]
        q, k, v = F.linear(x, self.qkv, self.bias).chunk(3, -1)
        return x + F.linear((q @ k.mT / 8**0.5).softmax(-1) @ v, self.out), weights


def test_every_projection_of_attention_is_a_layer() -> None:
    torch.manual_seed(0)
    model, x, memory = Attention(), torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    network = capture(model, (x, memory))
    assert network.table.names == (
        *("module.in_proj_weight", "module.out_proj"),
        *("other.q_proj_weight", "other.k_proj_weight", "other.v_proj_weight", "other.out_proj"),
        *("qkv", "out"),
    )
    assert network.table.n_weights == sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert network.table.uncounted == ()
    require_same(network, model, x, memory)
    assert network.table.macs == counted_macs(model, x[:1], memory[:1])


class OtherProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        y = torch.einsum("bik,bjk->bij", x, x) + torch.bmm(x, x.mT)
        z = torch.baddbmm(y, x, x.mT) + torch.einsum("bik,bjk->ijb", x, x).movedim(-1, 0)
        return torch.bmm(z, F.scaled_dot_product_attention(x, x, x))


def test_products_of_activations_are_counted() -> None:
    model, x = OtherProducts(), torch.randn(2, 5, 4)
    network = capture(model, x)
    assert [(product.operation, product.macs) for product in network.table.products] == [
        ("einsum", 100),
        ("bmm", 100),
        ("baddbmm", 100),
        ("einsum", 100),
        ("scaled_dot_product_attention", 200),
        ("bmm", 100),
    ]
    assert network.table.macs == counted_macs(model, x[:1])
    require_same(network, model, x)


def test_the_same_capture_twice() -> None:
    torch.manual_seed(0)
    model = Code(in_place)
    first, second = of_images(model, SIZE), of_images(model, SIZE)
    assert first.table == second.table
    assert str(first.module.graph) == str(second.module.graph)
    assert [unit.reads for unit in first.units] == [unit.reads for unit in second.units]


def test_means_over_samples_are_those_of_the_samples_that_come() -> None:
    torch.manual_seed(0)
    model, x = Code(lambda m, x: m.b(m.a(x)) - x.mean()), torch.randn(5, *SIZE)
    network = of_images(model, SIZE)
    with torch.no_grad():
        assert torch.allclose(unit_by_unit(network, x)[""], model.eval()(x), atol=1e-5)


def test_a_number_of_samples_that_is_a_constant_is_refused() -> None:
    message = refusal(Code(lambda m, x: m.b(m.a(x)).reshape(len(x), 4, 8, 8)), torch.randn(3, *SIZE))
    assert "write x.shape[0] for len(x)" in message


class ReadElsewhere(nn.Module):
    """Weights and biases that layers apply, and other operations read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.bare = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mean((2, 3)) * self.conv.weight.mean()
        x = F.linear(x, self.linear.weight) + 2 * self.linear.bias
        return F.linear(x, self.bare) + self.bare.sum()


def test_parameters_that_other_operations_read_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = ReadElsewhere(), torch.randn(4, *SIZE)
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    network = of_images(model, SIZE)
    assert network.table.names == ("conv", "linear", "bare")
    require_same(network, model, x)
    assert dict(network.table.uncounted) == {
        "conv": "Conv2d is not quantized",
        "linear": "Linear is not quantized",
        "bare": "parameter of ReadElsewhere, used directly",
    }
    before = model.conv.weight.mean()
    network.layer("conv").weight.data.zero_()
    assert torch.equal(network.module.get_parameter("read_elsewhere.conv.weight").mean(), before)


class Products(nn.Module):
    """Products with parameters: two that are linear maps, and an einsum that is not looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight, self.other = (
            nn.Linear(4, 4),
            nn.Parameter(torch.randn(4, 4)),
            nn.Parameter(torch.ones(4, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(
            torch.ones(2), torch.einsum("bi,io->bo", self.layer(x) @ self.weight, self.weight), self.other
        )


def test_products_with_parameters_are_layers_whose_work_is_counted() -> None:
    model, x = Products(), torch.randn(3, 4)
    network = capture(model, x)
    assert network.table.names == ("layer", "weight", "other")
    assert [name for name, _ in network.table.uncounted] == ["weight"]  # that of the einsum
    assert network.table.macs == counted_macs(model, x[:1])
    require_same(network, model, x)


def test_an_encoder_that_looks_at_its_mask_is_refused_without_bad_advice() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 8)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

        def forward(self, ids: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(6)
            return self.encoder(self.words(ids), mask)  # which asks whether the mask is causal

    message = refusal(Encoder(), torch.randint(0, 9, (3, 6)))
    assert "cannot be exported" in message
    assert "'words'" not in message


def test_data_of_a_tensor_is_named() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(2 * x.data)
            return y

    with pytest.raises(InputError, match=r"hidden cannot be exported: its code reads x\.data, .* write x\.detach\(\)$"):
        capture(Hidden(), torch.randn(3, 4), "hidden")


FORKED = """
import os
import torch
from torch import nn
from recon.graph.network import capture

capture(nn.Conv2d(3, 4, 3).eval(), torch.zeros(3, 3, 8, 8))
if os.fork() == 0:
    try:
        print(len(capture(nn.Conv2d(3, 4, 3).eval(), torch.zeros(3, 3, 8, 8)).table))
    except Exception as error:
        print(type(error).__name__, error)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_process_that_was_forked_after_gradients_says_so() -> None:
    done = subprocess.run([sys.executable, "-u", "-c", FORKED], check=True, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("InputError torch computes no gradients in a process that was forked")
