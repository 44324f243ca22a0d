"""The picture of boxes: what a detector finds in some validation images, in float, plainly rounded and finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.tasks.boxes import SURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 3.2  # of an image, in inches
MOST_BYTES, QUALITIES = 300_000, (80, 60, 40, 20)
STATES = {"float": "float", "plain": "plain rounding", "finished": "finished"}
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#e377c2", "#bcbd22")

Seen = Mapping[str, Sequence[Any]]  # boxes x1 y1 x2 y2, scores and labels of one image


def draw_boxes(images: NDArray[np.uint8], seen: Mapping[str, Sequence[Seen]], title: str) -> bytes:
    """Images (n, H, W, C), a row for each, with the boxes that each state of the network finds in them, a colour for
    each class: a WebP of at most `MOST_BYTES`, or of the lowest of the qualities."""
    from matplotlib.figure import Figure

    states = [state for state in STATES if state in seen]
    height, width = images.shape[1:3]
    size = (SIDE * len(states), SIDE * height / width * len(images) + 0.6)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(images), len(states), squeeze=False)
    for row, image in enumerate(images):
        for column, state in enumerate(states):
            axis = axes[row, column]
            axis.imshow(image if image.shape[2] > 1 else image[..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(STATES[state], fontsize=9)
            _draw(axis, seen[state][row])
    figure.suptitle(f"{title}: boxes with a score above {SURE}", fontsize=10)
    for quality in QUALITIES:
        made = BytesIO()
        figure.savefig(made, format="webp", pil_kwargs={"quality": quality})
        if made.tell() <= MOST_BYTES:
            break
    return made.getvalue()


def _draw(axis: Axes, seen: Seen) -> None:
    from matplotlib.patches import Rectangle

    for (left, top, right, bottom), score, label in zip(seen["boxes"], seen["scores"], seen["labels"], strict=True):
        colour = COLOURS[int(label) % len(COLOURS)]
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.2))
        background = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        text = axis.text(left, top, f"{int(label)}: {score:.2f}", fontsize=5.5, color="white", va="top", clip_on=True)
        text.set_bbox(background)
