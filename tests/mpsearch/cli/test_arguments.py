"""Options of commands are made of the fields of records."""

from __future__ import annotations

from dataclasses import fields

import pytest
from commandline import Command

from mpsearch.request.flags import BUDGETS, MODEL, PANELS, RECONSTRUCTION, SEARCH, flags_of
from mpsearch.request.options import FinishOptions, ModelOptions, RunOptions


@pytest.mark.parametrize("record", [ModelOptions, FinishOptions, RunOptions])
def test_every_field_can_be_given_and_shows_its_default(record: type[ModelOptions]) -> None:
    flags = flags_of(record)
    assert [field.name for field in flags] == [field.name for field in fields(record)]
    for field in flags:
        assert field.flag.panel in PANELS
        if field.flag.read is not None and field.flag.shown is not None:
            assert field.flag.read(field.flag.shown) == field.default
        elif field.flag.read is not None:
            assert field.default in (None, ())


def test_help_stands_in_panels(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    for name in ("run", "sensitivity"):
        shown = command(name, "--help").out
        places = [shown.index(f"─ {panel} ─") for panel in PANELS]
        assert places == sorted(places)
        ends = dict(zip(PANELS, [*places[1:], len(shown)], strict=True))
        starts = dict(zip(PANELS, places, strict=True))
        for flag, panel in (("size-budget", BUDGETS), ("samples", MODEL), ("wbits", SEARCH), ("steps", RECONSTRUCTION)):
            assert starts[panel] < shown.index(f"--{flag} ") < ends[panel]
    assert "--size-budget" not in command("reconstruct", "--help").out
