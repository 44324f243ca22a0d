"""Options of commands are made of the fields of records."""

from __future__ import annotations

from dataclasses import fields

import pytest
from commandline import Command

from mpsearch.request.flags import flags_of
from mpsearch.request.options import PANELS, FinishOptions, ModelOptions, RunOptions


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
        places = [shown.index(f" {panel} ") for panel in PANELS]
        assert places == sorted(places)
        assert places[0] < shown.index("--size-budget") < places[1] < shown.index("--samples") < places[2]
        assert places[2] < shown.index("--wbits") < places[3] < shown.index("--steps") < places[4]
    assert "--size-budget" not in command("reconstruct", "--help").out
