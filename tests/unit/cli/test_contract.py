"""Every command of the outward contract is there and explains itself."""

from __future__ import annotations

import pytest
import typer
from typer.main import get_command

from hepalign.cli.app import app

COMMANDS = {
    "data": ["phantom", "import", "import-table", "simulate", "check"],
    "release": ["build", "list", "show", "diff", "promote", "rollback", "history"],
    "client": ["cases", "plan", "guide", "jobs", "artifacts"],
    "sites": ["add", "list", "rotate", "revoke"],
    "audit": ["export", "verify"],
    "relay": ["orthanc"],
}
ALONE = ["train", "tune", "evaluate", "doctor", "serve", "demo"]
ALONE += ["plan", "guide", "synthesise", "inpaint", "register", "points"]


@pytest.mark.parametrize("words", [*([g, c] for g, cs in COMMANDS.items() for c in cs), *([c] for c in ALONE)])
def test_a_command_of_the_contract_explains_itself_and_takes_json(words: list[str]) -> None:
    here = get_command(app)
    context = here.make_context("hepalign", list(words))
    for word in words:
        here = here.commands[word]  # type: ignore[attr-defined]
        context = typer.Context(here, parent=context, info_name=word)
    text = here.get_help(context)
    assert here.help
    assert "--json" in text
    assert "--debug" in text
