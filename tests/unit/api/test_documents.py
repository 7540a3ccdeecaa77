"""What docs/python-api.md and docs/ci.md show is Python, YAML and verbs that there are."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import coloctl.api.pair
from coloctl import pytest_plugin
from coloctl.cli.verbs import VERBS, cli

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
API = (ROOT / "docs/python-api.md").read_text()
CI = (ROOT / "docs/ci.md").read_text()


def blocks(text: str, kind: str) -> dict[str, str]:
    """Code blocks by the name in the comment above each."""
    found = re.findall(rf"^<!-- {kind}: ([\w-]+) -->\n```\w+\n(.*?)^```", text, re.M | re.S)
    assert len(found) == text.count(f"<!-- {kind}: ")
    return dict(found)


EXAMPLES = blocks(API, "example")


def test_every_code_block_has_a_name() -> None:
    assert API.count("```python") == len(EXAMPLES)
    assert CI.count("```") == 2 * len(blocks(CI, "ci"))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "main"])
def test_an_example_is_python_that_can_be_loaded(name: str) -> None:
    space: dict[str, Any] = {"coloctl": coloctl, "pytest": pytest}
    exec(compile(EXAMPLES[name], name, "exec"), space)


def test_the_examples_are_typed(tmp_path: Path) -> None:
    plain = ("main", "attach", "generation", "events", "faults")
    whole = "\n".join(EXAMPLES[name].replace("asyncio.run(main())", "") for name in plain)
    (tmp_path / "examples.py").write_text(whole)
    # With the configuration and the cache of `make lint`, which has read the package already.
    argv = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*argv, str(tmp_path / "examples.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def called(source: str) -> Iterator[str]:
    """Methods of what is called pair or colo_pair."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="pair" | "colo_pair"), attr=name):
                yield name


def test_the_examples_call_what_there_is() -> None:
    for source in EXAMPLES.values():
        for name in called(source):
            assert hasattr(coloctl.api.pair.Pair, name), name


def test_the_table_has_every_verb_and_its_arguments() -> None:
    section = API.split("## What can be awaited", 1)[1].split("## In tests", 1)[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    written = dict(re.findall(r"`(\w+)\((.*?)\)`", table))
    assert written.pop("inflict")
    inner = {"open", "close", "keep", "in_thread", "ask", "inflict"}
    public = {name for name in vars(coloctl.api.pair.Pair) if not name.startswith("_")}
    assert set(written) == public - inner
    for name, words in written.items():
        known = inspect.signature(getattr(coloctl.api.pair.Pair, name)).parameters
        for key in re.findall(r"(?:^|, )\*{0,2}([a-z_]+)", words):
            assert key in known or any(p.kind is p.VAR_KEYWORD for p in known.values()), (name, key)


def test_the_table_has_every_fixture() -> None:
    written = re.findall(r"^\| `(colo_\w+)` \|", API, re.M)
    assert set(written) == {*pytest_plugin.FIXTURES, "colo_setting"}
    for name in written:
        assert hasattr(pytest_plugin, name)


# -- docs/ci.md


def lines_of(job: Any) -> Iterator[str]:
    """Every command line in a job, wherever it stands."""
    if isinstance(job, dict):
        for key, value in job.items():
            if key in ("run", "script", "before_script"):
                whole = value if isinstance(value, str) else "\n".join(value)
                yield from whole.splitlines()
            else:
                yield from lines_of(value)
    elif isinstance(job, list):
        for value in job:
            yield from lines_of(value)


def calls(document: Any) -> list[list[str]]:
    """The words behind ``coloctl`` of each call of it."""
    found = []
    for line in lines_of(document):
        words = shlex.split(line)
        if place := [n for n, word in enumerate(words) if word == ".venv/bin/coloctl"]:
            found.append(words[place[0] + 1 :])
    return found


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_a_job_is_yaml_and_calls_what_there_is(name: str) -> None:
    document = yaml.safe_load(blocks(CI, "ci")[name])
    assert isinstance(document, dict)
    made = calls(document)
    assert ["lab", "qemu"] in made and ["lab", "guest"] in made
    verbs = {verb for section in VERBS.values() for verb in section}
    for words in made:
        assert words[0] in verbs
        command: Any = cli.get_command(None, words[0])  # type: ignore[arg-type]
        rest = words[1:]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for one in command.params for name in one.opts}
        assert {word for word in rest if word.startswith("--")} <= options
    assert any("--junitxml=" in line for line in lines_of(document))


def test_the_jobs_have_what_github_and_gitlab_ask_of_them() -> None:
    found = blocks(CI, "ci")
    (job,) = yaml.safe_load(found["github"])["jobs"].values()
    assert job["runs-on"] and all("uses" in step or "run" in step for step in job["steps"])
    (job,) = yaml.safe_load(found["gitlab"]).values()
    assert job["image"] and all(isinstance(line, str) for line in job["script"])
    assert "/dev/net/tun" in tomllib.loads(found["gitlab-runner"])["runners"]["docker"]["devices"]
