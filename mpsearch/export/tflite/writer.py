"""The TFLite model that is being written, and where the tensors of the plan are in it."""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.export.plan.records import Grid, Plan
from mpsearch.export.tflite.model import Model

MAP = 4  # dimensions of tensors that are laid out channels last
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Writer:
    """The model that is being written, and where the plan's tensors are in it. Where `int4`, weights of
    convolutions of up to 4 bits that fit are stored as such."""

    def __init__(self, plan: Plan, int4: bool) -> None:
        self.plan, self.int4, self.model = plan, int4, Model()
        self.at: dict[str, int] = {}

    def grid(self, name: str) -> Grid:
        """The grid of a tensor that has one."""
        grid = self.plan.tensors[name].grid
        assert grid is not None
        return grid

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file, for one sample."""
        shape = tuple(abs(size) for size in self.plan.tensors[name].shape)
        return laid_out(shape)

    def result(self, name: str) -> int:
        """The tensor of the plan in the file."""
        if name not in self.at:
            self.at[name] = self.model.tensor(name, self.shape(name), "INT8", self.grid(name))
        return self.at[name]

    def inner(self, name: str, shape: Sequence[int], grid: Grid) -> int:
        """An int8 tensor that the plan does not have."""
        return self.model.tensor(name, shape, "INT8", grid)


def laid_out(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Maps (N, C, H, W) as (N, H, W, C), anything else as it is."""
    return tuple(shape[axis] for axis in TO_LAST) if len(shape) == MAP else shape
