"""Trains the detectors of `bccd.py` on blood cells, on the CPU, in less than an hour; weights go into the cache folder.

    python benchmarks/train_bccd.py [retinanet] [fasterrcnn]

Images and boxes of ../shared/data/bccd (MIT), mirrored at random; AdamW with a rate that falls like a cosine. The batch
norms of the backbone stay as ImageNet left them, and so do its first blocks.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from bccd import DATA, build, weights_of
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from recon.compute.arithmetic import fast

EPOCHS, BATCH, RATE = 10, 8, 3e-4
FROZEN = 11  # blocks of the backbone

Example = tuple[Tensor, dict[str, Tensor]]


def examples() -> list[Example]:
    """The training images (3, 240, 320) from 0 to 1 with their boxes."""
    folder = DATA / "bccd"
    data = json.loads((folder / "instances_train.json").read_text("utf-8"))
    found = []
    for image in data["images"]:
        boxes = [one for one in data["annotations"] if one["image_id"] == image["id"] and min(one["bbox"][2:]) > 1]
        if boxes:
            pixels = np.asarray(Image.open(folder / "images" / image["file_name"]).convert("RGB"))
            corners = torch.tensor([one["bbox"] for one in boxes], dtype=torch.float32)
            corners[:, 2:] += corners[:, :2]
            labels = torch.tensor([one["category_id"] for one in boxes])
            found.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255, {"boxes": corners, "labels": labels}))
    return found


def mirrored(example: Example, generator: torch.Generator) -> Example:
    """Left and right, and top and bottom, exchanged with even chances."""
    image, target = example
    boxes = target["boxes"].clone()
    for axis in (0, 1):
        if torch.rand((), generator=generator) < 0.5:
            side = image.shape[2 - axis]
            image = image.flip(2 - axis)
            boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    return image, {**target, "boxes": boxes}


def train(name: str, epochs: int = EPOCHS, seed: int = 0) -> None:
    """Trains a detector and writes its weights."""
    torch.manual_seed(seed)
    generator, known = torch.Generator().manual_seed(seed), examples()
    model = build(name, pretrained=True).train().to(memory_format=torch.channels_last)
    for index, block in enumerate(model.backbone.body.children()):
        block.requires_grad_(index >= FROZEN)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    steps = epochs * -(-len(known) // BATCH)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for epoch in range(epochs):
        total, count = 0.0, 0
        for part in torch.randperm(len(known), generator=generator).split(BATCH):
            images, targets = zip(*(mirrored(known[index], generator) for index in part), strict=True)
            with fast(torch.device("cpu")):
                losses = model(list(images), list(targets))
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
        print(f"{name}, epoch {epoch + 1}: loss {total / count:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    weights_of(name).parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, str(weights_of(name)))


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("retinanet", "fasterrcnn"):
        train(wanted)
