"""What every command shares: settings, the client, where it prints."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table

from ...client import Client
from ...settings import Settings, is_loopback

# Into a file or a pipe, tables are as wide as they need to be; in a terminal, as wide as it is.
console = Console() if sys.stdout.isatty() else Console(width=160)
errors = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
StudyId = Annotated[str, typer.Argument(metavar="ID", help="The study's id.")]
TrialId = Annotated[str, typer.Argument(metavar="TRIAL", help="The trial's id (see: cdka show ID --json).")]


# A package that each extra installs and the others do not.
_FROM_EXTRA = {"adapter": "peft", "server": "uvicorn", "workers": "ray"}


def require_extra(*extras: Literal["adapter", "server", "workers"]) -> None:
    """Exit 2 with the command that installs what a command needs beyond the base installation, if that is missing."""
    missing = [extra for extra in extras if importlib.util.find_spec(_FROM_EXTRA[extra]) is None]
    if missing:
        errors.print(
            f"This command needs more than the base installation. Run: pip install 'cdka[{','.join(missing)}]'",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(2)


def load_settings() -> Settings:
    """The settings, or exit 2 with what is wrong with them."""
    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors():
            place = f"CDKA_{str(fault['loc'][0]).upper()}: " if fault["loc"] else ""
            errors.print(f"{place}{fault['msg']}", markup=False)
        raise typer.Exit(2) from None


def connect() -> Client:
    """A client for the server that the settings name; beside an embedded server its own token is at hand."""
    settings = load_settings()
    token = settings.read_token()
    own = settings.home / "admin-token"
    if token is None and own.exists() and is_loopback(settings.server_url.split("://")[-1].rsplit(":", 1)[0]):
        token = own.read_text().strip()
    return Client(settings.server_url, token)


def print_json(value: BaseModel | Sequence[BaseModel]) -> None:
    """JSON on standard output, as the server sent it."""
    if isinstance(value, BaseModel):
        print(json.dumps(value.model_dump(mode="json"), indent=2))
    else:
        print(json.dumps([v.model_dump(mode="json") for v in value], indent=2))


def show(found: Iterable[BaseModel], columns: Sequence[str], as_json: bool) -> None:
    """A list as JSON, or as a table of some of its fields."""
    rows = list(found)
    if as_json:
        print_json(rows)
        return
    table = Table()
    for name in columns:
        table.add_column(name.replace("_", " "))
    for row in rows:
        content = row.model_dump(mode="json")
        table.add_row(*[_cell(_field(content, name)) for name in columns])
    console.print(table)


def _field(content: dict[str, Any], name: str) -> Any:
    value: Any = content
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
