"""What is written instead of characters that a terminal does not have: the error handler `plainly` of codecs."""

from __future__ import annotations

import codecs

PLAIN = {
    "→": "->", "…": "...", "×": "x", "µ": "u", "Δ": "d", "≥": ">=", "≤": "<=", "±": "+-", "½": "1/2", "◄": "<",
    "–": "-", "²": "2", "·": "*", "τ": "tau", "σ": "sigma", "∂": "d", "−": "-", "’": "'", "“": '"', "”": '"',
}  # fmt: skip


def plainly(error: UnicodeError) -> tuple[str, int]:
    """The characters in plain ones, `?` for those that have none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("plainly", plainly)
