"""Tables of benchmarks in pages: each between a comment that begins it and one that ends it, by name."""

from __future__ import annotations

from pathlib import Path


def replaced(text: str, name: str, table: str) -> str:
    """A page's text with another table of this name."""
    begin, end = (f"<!-- {name}: {part} -->" for part in ("begin", "end"))
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def put(page: Path, name: str, table: str) -> None:
    """Writes a table where a page has the one of this name."""
    page.write_text(replaced(page.read_text("utf-8"), name, table), "utf-8")
