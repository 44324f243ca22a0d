"""Terminals that do not know every character: what is written instead."""

from __future__ import annotations

import codecs
import sys

PLAIN = {
    "→": "->", "…": "...", "×": "x", "µ": "u", "Δ": "d", "≥": ">=", "≤": "<=", "±": "+-", "½": "1/2", "◄": "<",
    "–": "-", "²": "2", "·": "*", "τ": "tau", "σ": "sigma", "∂": "d", "−": "-", "’": "'", "“": '"', "”": '"',
}  # fmt: skip


def plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: the characters in plain ones, `?` for those that have none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def write_anywhere() -> None:
    """Lets stdout and stderr take any text, whatever characters the terminal has."""
    codecs.register_error("plainly", plainly)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # what tests and notebooks put there has none
        if reconfigure is not None:
            reconfigure(errors="plainly")
