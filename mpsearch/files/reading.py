"""Reading files that somebody may have edited, cut off or sent: whatever is wrong with them becomes one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hwmodel import InputError

# What reading a text, taking apart what it holds, and making records of the parts may raise.
_WRONG = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, AssertionError, EOFError)


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns what goes wrong with the contents of `path` into an InputError that names it and says the `remedy`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from None
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path} is damaged ({error}); {remedy}") from None
    except _WRONG as error:
        what = " ".join(str(error).split())[:160] or type(error).__name__
        said = what if isinstance(error, ValueError) else f"{type(error).__name__}: {what}"
        raise InputError(f"{path} is damaged ({said}); {remedy}") from None
