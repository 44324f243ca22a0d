"""Trains the embedded default: torchvision's MobileNetV2 on the rendered data set; writes the package data.

The shipped weights are two cycles, the first on an earlier, harder rendering of the data set; the JSON beside them
holds the settings of each:

python benchmarks/train_demo.py --out first.safetensors
python benchmarks/train_demo.py --start first.safetensors --seed 1 --epochs 6 --rate 1.5e-3

Each half of a batch goes through the network in a thread of its own, with one core for its arithmetic: on a
busy machine this is many times as fast as sharing every operation between cores that wait for each other.
Batch statistics are those of a half; the running ones are measured at the end. `--start` goes on from weights
that this script wrote, with another cycle.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read by threads other than the first when torch is imported

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpsearch.sources import demo
from mpsearch.sources.split import Normalization
from recon.compute.arithmetic import keep_freed_memory

NORMALIZED = Normalization(demo.MEAN, demo.STD)
HALVES = 2


def main() -> None:
    """Renders, trains, measures the file as it was written, and describes it in JSON beside it."""
    options = _options()
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    train_x, train_y = (torch.from_numpy(array) for array in demo.render("train", options.images, options.seed))
    val_x, val_y = (torch.from_numpy(array) for array in demo.render("val", demo.VAL_SAMPLES))
    print(f"rendered in {time.perf_counter() - started:.0f} s", flush=True)

    model = torchvision.models.mobilenet_v2(num_classes=len(demo.CLASSES))
    model = model.to(memory_format=torch.channels_last)
    cycles = []
    if options.start:
        load(model, options.start)
        cycles = json.loads(options.start.with_suffix(".json").read_text(encoding="utf-8"))["training"]
    train(model, train_x, train_y, val_x[:500], val_y[:500], options)
    measure_batch_norms(model, train_x[:4000])
    trained = time.perf_counter() - started
    top1_float32 = accuracy(model, val_x, val_y)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: t.half().contiguous() for name, t in model.state_dict().items() if t.is_floating_point()}
    partial = options.out.with_suffix(".partial")
    save_file(state, partial)
    partial.replace(options.out)
    load(model, options.out)
    top1 = accuracy(model, val_x, val_y)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "start")}
    about = {
        "input_size": demo.INPUT_SIZE,
        "mean": demo.MEAN,
        "std": demo.STD,
        "classes": len(demo.CLASSES),
        "val_samples": len(val_y),
        "top1_val_percent": round(top1, 2),
        "top1_val_percent_before_half_precision": round(top1_float32, 2),
        "training": [*cycles, {**settings, "seconds": round(trained)}],
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, np)},
    }
    options.out.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(
        f"top-1 {top1:.2f} % on {len(val_y)} images ({top1_float32:.2f} % before half precision), "
        f"{options.out.stat().st_size:,} bytes"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=24000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--out", type=Path, default=demo.weights_path())
    return parser.parse_args()


def load(model: nn.Module, path: Path) -> None:
    """Half-precision weights into the float32 model."""
    model.load_state_dict({name: t.float() for name, t in load_file(path).items()}, strict=False)


def train(model: nn.Module, x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, options: argparse.Namespace) -> None:
    """AdamW with one cycle; batches are turned and mirrored, which leaves every class what it is."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=options.weight_decay)
    steps = options.images // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.rate, total_steps=options.epochs * steps, pct_start=0.15
    )
    generator = torch.Generator().manual_seed(options.seed)

    def gradients(images: Tensor, labels: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        torch.set_num_threads(1)
        output = model(NORMALIZED(images))
        loss = F.cross_entropy(output, labels, label_smoothing=options.label_smoothing)
        return loss.item(), torch.autograd.grad(loss, parameters)

    started = time.perf_counter()
    with ThreadPoolExecutor(HALVES) as pool:
        for epoch in range(options.epochs):
            model.train()
            order = torch.randperm(options.images, generator=generator)[: steps * options.batch]
            running = 0.0
            for step, pick in enumerate(torch.split(order, options.batch)):
                images = _turned(x[pick], generator)
                halves = list(pool.map(gradients, images.chunk(HALVES), y[pick].chunk(HALVES)))
                for parameter, *parts in zip(parameters, *(grads for _, grads in halves), strict=True):
                    parameter.grad = sum(parts, start=torch.zeros(())) / HALVES
                optimizer.step()
                schedule.step()
                running += sum(loss for loss, _ in halves) / HALVES
                if step % 100 == 99:
                    print(f"  {step + 1}/{steps}: loss {running / (step + 1):.3f}", flush=True)
            top1 = accuracy(model, val_x, val_y)
            seconds = time.perf_counter() - started
            progress = f"epoch {epoch + 1}: loss {running / steps:.3f}, top-1 {top1:.1f} % of {len(val_y)}"
            print(f"{progress}, {seconds:.0f} s", flush=True)


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, H, W, 3), all turned by the same multiple of 90 degrees and, half the time, mirrored."""
    turns, mirror = int(torch.randint(4, (), generator=generator)), torch.rand((), generator=generator) < 0.5
    images = images.rot90(turns, (1, 2))
    return images.flip(2) if mirror else images


@torch.no_grad()
def measure_batch_norms(model: nn.Module, x: Tensor) -> None:
    """Replaces the running statistics by the mean over batches of x uint8 (N, H, W, 3)."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for images in torch.split(x, 250):
        model(NORMALIZED(images))


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Top-1 in percent."""
    model.eval()
    right = 0
    for images, labels in zip(torch.split(x, 250), torch.split(y, 250), strict=True):
        right += int((model(NORMALIZED(images)).argmax(1) == labels).sum())
    return 100 * right / len(y)


if __name__ == "__main__":
    main()
