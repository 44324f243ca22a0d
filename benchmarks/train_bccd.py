"""Trains the detectors of `bccd.py` on blood cells, on the CPU, in less than an hour; weights go into the cache folder.

    python benchmarks/train_bccd.py [retinanet] [fasterrcnn]

Images and boxes of ../shared/data/bccd (MIT), mirrored at random; AdamW with a rate that falls like a cosine. The batch
norms of the backbone stay as ImageNet left them, and so do its first blocks, which see each mirror image once.
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

EPOCHS, BATCH, RATE = 40, 8, 3e-4
FROZEN = 11  # blocks of the backbone
MIRRORS = ((), (2,), (1,), (1, 2))  # the axes of an image (3, height, width) that are turned

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


def mirrored(example: Example, axes: tuple[int, ...]) -> Example:
    """An image with left and right, or top and bottom, exchanged."""
    image, target = example
    boxes = target["boxes"].clone()
    for axis in axes:
        low, side = 2 - axis, image.shape[axis]
        boxes[:, [low, low + 2]] = side - boxes[:, [low + 2, low]]
    return image.flip(axes) if axes else image, {**target, "boxes": boxes}


class Seen(nn.Module):
    """Stands for the frozen blocks: gives the maps that they made of the images of this step, set beforehand."""

    maps: Tensor

    def forward(self, _: Tensor) -> Tensor:
        """The maps (n, c, h, w)."""
        return self.maps


def frozen_maps(model: nn.Module, known: list[Example]) -> list[Tensor]:
    """What the frozen blocks make of each image (c, h, w); these blocks make room for `Seen`."""
    body = model.backbone.body
    first = [str(index) for index in range(FROZEN)]
    frozen, maps = nn.Sequential(*(body[key] for key in first)), []
    with torch.no_grad():
        for part in range(0, len(known), BATCH):
            images, _ = model.transform([image for image, _ in known[part : part + BATCH]])
            maps += list(frozen(images.tensors))
    for key in first:
        body[key] = nn.Identity()
    body["0"] = Seen()
    return maps


def train(name: str, epochs: int = EPOCHS, seed: int = 0) -> None:
    """Trains a detector and writes its weights."""
    torch.manual_seed(seed)
    began, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    known = [mirrored(example, axes) for axes in MIRRORS for example in examples()]
    model = build(name, pretrained=True).train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    whole = dict(model.backbone.body.items())
    maps, seen = frozen_maps(model, known), model.backbone.body["0"]
    images = len(known) // len(MIRRORS)
    steps = epochs * -(-images // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        total, count = 0.0, 0
        turned = torch.randint(len(MIRRORS), (images,), generator=generator) * images
        for part in (torch.randperm(images, generator=generator) + turned).split(BATCH):
            seen.maps = torch.stack([maps[index] for index in part])
            pictures, targets = zip(*(known[index] for index in part), strict=True)
            with fast(torch.device("cpu")):
                losses = model(list(pictures), list(targets))
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
        print(f"{name}, epoch {epoch + 1}: loss {total / count:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    for key, block in whole.items():
        model.backbone.body[key] = block
    weights_of(name).parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, str(weights_of(name)))


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("retinanet", "fasterrcnn"):
        train(wanted)
