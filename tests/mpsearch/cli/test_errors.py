"""What errors become on the command line, whoever raises them."""

from __future__ import annotations

import errno

import pytest
import torch

from hwmodel import InputError
from mpsearch.cli import main as program


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mpsearch"])


def said(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and stderr of a command that raises."""

    def call(arguments: list[str], standalone_mode: bool) -> None:
        raise error

    monkeypatch.setattr(program, "application", lambda: call)
    with pytest.raises(SystemExit) as end:
        program.main()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return int(str(end.value.code)), err


def test_an_allocation_that_fails_says_how_to_need_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors: list[BaseException] = [MemoryError()]
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    errors.append(refused.value)
    errors += [OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("Resource temporarily unavailable")]
    try:  # whoever makes another error of it
        try:
            raise MemoryError
        except MemoryError:
            raise InputError("weights w.pt are damaged; get the file again") from None
    except InputError as error:
        errors.append(error)
    for error in errors:
        code, line = said(error, monkeypatch, capsys)
        assert code == 2
        assert "out of memory" in line
        assert "--cache-memory" in line
        assert "Traceback" not in line


def test_what_the_system_refuses_is_no_internal_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = said(PermissionError(13, "Permission denied", "/x\ny"), monkeypatch, capsys)
    assert code == 2
    assert "the system refuses /x" in line
    code, line = said(OSError(28, "No space left on device"), monkeypatch, capsys)
    assert (code, "a file or stdout (No space left on device)" in line) == (2, True)


def test_a_fault_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(RuntimeError("first\nsecond"), monkeypatch, capsys)
    assert code == 1
    assert line == "mpsearch: internal fault: RuntimeError: first\\nsecond (--debug shows where)\n"
