"""The manual pages and completion scripts: all that `--help` and the pair file's schema name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from coloctl.cli import manual
from coloctl.cli.verbs import VERBS, cli, run_verb
from coloctl.pairfile import json_schema

pytestmark = pytest.mark.unit

PAGES = manual.pages()
VERB_NAMES = [name for verbs in VERBS.values() for name in verbs]


def options(command: click.Command) -> set[str]:
    shown = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    found = {word for one in shown for word in one.opts}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            found |= options(inner)
    return found


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_a_page_names_every_option_of_its_verb(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    page = PAGES[f"coloctl-{verb}.1"].replace("\\-", "-")
    assert {word for word in options(command) | {"--help"} if word not in page} == set()


def test_the_overview_names_every_verb() -> None:
    text = PAGES["coloctl.1"].replace("\\-", "-")
    assert [name for name in VERB_NAMES if f"coloctl-{name} (1)" not in text] == []


def test_the_pair_files_page_names_every_key_with_its_bounds() -> None:
    page = PAGES["coloctl.toml.5"].replace("\\-", "-")
    schema = json_schema()
    for part in schema["$defs"].values():
        for key in part.get("properties", {}):
            assert f".{key}" in page, key
    assert ".SS [[disk]]" in page and ".SS [disk.image]" in page
    assert "at least 1, at most 255, default 1" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", PAGES)
def test_groff_finds_nothing_to_warn_about(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(PAGES[name])
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", str(file)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_COLOCTL_COMPLETE={shell}_complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
