"""The docs say what is there: commands that parse, links that lead somewhere, every error code."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.main import get_command

from hepalign.cli.app import app
from hepalign_serve.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CODE_FOLDERS = ("platform/hepalign", "serve/hepalign_serve", "jobs")


def blocks(page: Path) -> list[str]:
    return re.findall(r"```(?:console|bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def command_lines(pattern: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, match[1]) for line in lines if (match := re.search(pattern, line.split(" #")[0]))]
    return found


@pytest.mark.parametrize(("page", "line"), command_lines(r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(hepalign .*?)(?: \||$)"))
def test_every_hepalign_command_of_the_docs_parses(page: str, line: str) -> None:
    here, rest = get_command(app), shlex.split(line)[1:]
    context = here.make_context("hepalign", list(rest))
    while hasattr(here, "commands"):
        name, here, rest = here.resolve_command(context, rest)
        # raises UsageError where a word is off
        context = here.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize(("page", "line"), command_lines(r"^(make .*)"))
def test_every_make_target_of_the_docs_exists(page: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = [w for w in shlex.split(line)[1:] if "=" not in w]
    assert set(named) <= targets


@pytest.mark.parametrize(("page", "script"), command_lines(r"python (jobs/\S+)"))
def test_every_job_of_the_docs_exists(page: str, script: str) -> None:
    assert (ROOT / script).is_file()


@pytest.mark.parametrize(("page", "config"), command_lines(r"--config (\S+)"))
def test_every_configuration_of_the_docs_exists(page: str, config: str) -> None:
    assert (ROOT / config).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


# helpers of the service that take the code by position: name and which argument
POSITIONAL = {"busy": 1, "response": 0, "document": 0}


def codes_in(tree: ast.AST) -> set[str]:
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in POSITIONAL and len(node.args) > POSITIONAL[name]:
                found.append(node.args[POSITIONAL[name]])
    return {e.value for e in found if isinstance(e, ast.Constant) and isinstance(e.value, str)}


def test_every_error_code_stands_in_one_table() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z0-9_]+)` \|", text, flags=re.MULTILINE)
    raised: set[str] = set()
    for folder in CODE_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            raised |= codes_in(ast.parse(path.read_text(encoding="utf-8")))
    assert len(documented) == len(set(documented)), "a code stands twice"
    assert raised - set(documented) == set(), "raised and not documented"
    assert set(documented) - raised == set(), "documented and never raised"


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        default = field.default
        found |= keys_of(type(default), f"{prefix}{name}.") if isinstance(default, BaseModel) else {prefix + name}
    return found


def test_every_setting_of_the_service_is_documented() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z0-9_.]+)` \|", text, flags=re.MULTILINE)) == keys_of(Settings)
