"""Figures: what a metric is called, in which unit, and which way is better, as records and tables have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hwmodel.errors import InputError

TITLES = {"top1": "top-1", "kl": "KL", "miou": "mean IoU", "rmse": "RMSE", "rmse_to_float": "RMSE to float"} | {
    "map": "mAP",
    "ap50": "AP50",
    "ap75": "AP75",
}
KL = "kl"


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric as it is written down: `labelled` where it compares with targets, not with the float network."""

    name: str
    unit: str
    higher_is_better: bool
    labelled: bool

    @property
    def title(self) -> str:
        """The name for reading."""
        return TITLES.get(self.name, self.name.replace("_", " "))

    def text(self, value: float) -> str:
        """A value with its unit."""
        if self.unit == "%":
            return f"{value:.2f} %"
        return f"{value:.4f} nats" if self.unit == "nats" else f"{value:.4g} {self.unit}".rstrip()

    def brief(self, value: float) -> str:
        """A value where there is little room."""
        return f"{value:.1f} %" if self.unit == "%" else f"{value:.3g} {self.unit}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


def read_figures(record: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The figures of a finished configuration's record, the task's first metric first, KL last.

    Raises InputError where the record has none.
    """
    try:
        found = tuple(Figure(**known) for known in record["judged_by"])
        if not found or not all(isinstance(figure.name, str) and isinstance(figure.unit, str) for figure in found):
            raise TypeError("figures have a name and a unit")
        if not all(type(flag) is bool for figure in found for flag in (figure.higher_is_better, figure.labelled)):
            raise TypeError("figures say true or false of themselves")
        return found
    except (KeyError, TypeError) as error:
        raise InputError(f"a finished configuration is damaged ({error}): finish it again") from None


def headline(figures: Sequence[Figure]) -> Figure | None:
    """The first figure; None where there is KL alone."""
    return figures[0] if figures[0].name != KL else None


def finished_text(record: Mapping[str, Any]) -> str:
    """The headline and KL of a finished configuration beside float and plain rounding, in one line."""
    float_, plain, finished = (record["metrics"][state] for state in ("float", "plain", "finished"))
    figures = read_figures(record)
    parts = []
    for figure in dict.fromkeys((figures[0], figures[-1])):
        beside = f"plain rounding {figure.text(plain[figure.name])}"
        if figure.labelled:
            beside = f"float {figure.text(float_[figure.name])}, {beside}"
        parts.append(f"{figure.title} {figure.text(finished[figure.name])} ({beside})")
    return ", ".join(parts)
