"""What mkdocs does beside its plugins: pages that nobody has put into a section, and links out of the pages' folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent
COMMANDS = "<!-- every command with its options -->"


def on_config(config: Any) -> Any:
    """Lists pages that `nav` does not name under a heading of their own."""
    named = re.findall(r"[\w.-]+\.(?:md|ipynb)", repr(config.nav))
    others = sorted(page.name for page in PAGES.glob("*.md") if page.name not in named)
    if others:
        config.nav.append({"More": others})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Names files of the repository that are no pages, in place of a link to them, and fills the page of commands."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands_page())
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)]*)\)", r"\1 (`\2`)", markdown)


def commands_page() -> str:
    """Every command with its options, in Markdown, as `--help` has them."""
    import typer

    from mpsearch.cli.main import application

    parts = []
    whole: Any = typer.main.get_command(application())
    for name, command in whole.commands.items():
        text = " ".join((command.help or "").split())
        rows = [f"## mpsearch {name}", text]
        if command.epilog:
            rows.append("\n".join(f"    {line}" for line in examples_in(command.epilog)))
        panels: dict[str, list[str]] = {}
        for option in command.params:
            shown = option.opts[-1] if option.param_type_name == "option" else option.name.upper()
            default = option.default if isinstance(option.default, str | int | float) else ""
            default = "" if isinstance(option.default, bool) else default
            cells = f"| `{shown}` | {_plain(getattr(option, 'help', '') or '')} | {_plain(default)} |"
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(cells)
        for panel, lines in panels.items():
            rows.append("\n".join([f"| {panel} | | default |", "|---|---|---|", *lines]))
        parts.append("\n\n".join(rows))
    return "\n\n".join(parts)


def examples_in(epilog: str) -> list[str]:
    """The command lines at the end of a command's help."""
    return [line.strip() for line in epilog.splitlines() if line.strip().startswith("mpsearch ")]


def _plain(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
