"""The commands of docs/two-machines.md, typed as they stand there, on machines of the lab.

Method: each console block of the page goes to a shell, in the page's order. The substitutions are
those that the page names below "Try it on one machine". A block that no lab can run stands after
a line ``<!-- not in the lab: why -->``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from support import sshhost

from coloctl import paths
from coloctl.lab import qemu
from coloctl.lab.machine import MachineState
from coloctl.lab.machines import Machines, labs

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
    pytest.mark.timeout(1200),
]

PAGE = Path(__file__).parents[2] / "docs/two-machines.md"
NAME = f"t{os.getpid()}-pg"
#: All commands of a block: the last one took 120 s where 17 processes wanted the two cores.
BLOCK_S = 600.0
#: A stop waits 10 s for a machine that boots; one that has little of a processor takes longer.
STOPS = 6
#: Of the pair's log and of its journal, in the message of a failure: lines, characters of each.
LAST, LINE_CHARS = 40, 400
BLOCK = re.compile(
    r"^## (?P<section>[^\n]+)$|(?:^<!-- not in the lab: (?P<why>[^\n]+) -->\n)?"
    r"^```(?P<kind>console|toml)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
#: The guest is the firmware, because the images are empty; the QEMU is one that every machine runs.
GUEST = {"memory": "128MiB", "accel": "tcg"}
#: What a shell of the lab takes the page's programs for.
SHELL = """
set -euo pipefail
coloctl() {{
    if [[ "${{*:1:2}}" == "lab machines" ]]; then set -- "$@" --lab {lab}; fi
    if [[ $1 == wait ]]; then set -- "$@" --timeout 600; fi  # a busy machine
    {python} -m coloctl.cli.main "$@" || [[ $1 == status && $? == 3 ]]  # 3: not protected
}}
ssh() {{
    if [[ $2 != reboot ]]; then $COLOCTL_SSH "$@"; return; fi
    coloctl lab machines reboot "${{1#root@}}"
}}
"""


@dataclass(frozen=True)
class Block:
    """A block of the page: its section, its text, and why no lab runs it."""

    section: str
    kind: str
    text: str
    why: str = ""

    def commands(self) -> list[str]:
        """Return what is typed; the other lines are what is answered."""
        lines = self.text.splitlines()
        return [line[2:] for line in lines if line.startswith(("$ ", "# "))]


def blocks() -> list[Block]:
    section, found = "", []
    for match in BLOCK.finditer(PAGE.read_text()):
        section = match["section"] or section
        if match["kind"]:
            found.append(Block(section, match["kind"], match["text"], match["why"] or ""))
    return found


@pytest.fixture
def build(qemu_builds: Callable[[str], qemu.Build]) -> qemu.Build:
    return qemu_builds("11.1")


@pytest.fixture
def lab(build: qemu.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Machines on which a QEMU seems installed, and the ssh that reaches them."""
    with Machines.up(NAME) as standing:
        for machine in (standing.machine("hv1"), standing.machine("hv2")):
            for name, real in (("qemu-system-x86_64", build.binary), ("qemu-img", build.img)):
                place = f"/usr/local/bin/{name}"
                write = f"printf '#!/bin/sh\\nexec {real} \"$@\"\\n' >{place}; chmod 755 {place}"
                assert machine.popen(["sh", "-c", write]).wait(BLOCK_S) == 0
        monkeypatch.setenv("COLOCTL_SSH", shlex.join(standing.ssh()))
        monkeypatch.setenv("COLOCTL_CONFIG_DIR", str(tmp_path / "config"))
        try:
            yield standing
        finally:
            clear(standing)


def clear(lab: Machines) -> None:
    """Leave no pair: a command that failed has left one, and perhaps a machine that is off.

    A stop names what it cannot reach, and the pair's folder stays then.
    """
    if not (folder := paths.pair_dir("web")).exists():
        return
    for machine in lab.machines.values():
        if machine.state() is MachineState.OFF:
            machine.boot()
    said: list[str] = []
    while folder.exists() and len(said) < STOPS:
        said.append(coloctl("stop", "web", "--force", "--yes", errors=subprocess.STDOUT))
    assert not folder.exists(), "\n".join(said)


def typed(commands: list[str], folder: Path) -> str:
    """Type the commands into one shell, each only after the one before succeeded."""
    script = SHELL.format(lab=NAME, python=shlex.quote(sys.executable))
    lines = [f'echo "+ $SECONDS s:" {shlex.quote(one)}\n{one}' for one in commands]
    done = subprocess.run(
        ["bash", "-c", script + "\n".join(lines)], cwd=folder, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=BLOCK_S,
    )  # fmt: skip
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"{failure(done.stdout)}\n{journal()}", pytrace=False)
    return done.stdout


def failure(said: str) -> str:
    """Return the last command that was echoed, which failed, and what came after it."""
    return said[said.rfind("\n+ ") + 1 :]


def journal() -> str:
    """Return the ends of the supervisor's log and of the pair's journal."""
    folder, found = paths.pair_dir("web"), []
    for name in ("supervisor.log", "journal.jsonl"):
        if (file := folder / name).exists():
            lines = file.read_text().splitlines()[-LAST:]
            found += [f"{name}:", *(line[:LINE_CHARS] for line in lines)]
    return "\n".join(found or ["No pair is there."])


def coloctl(*words: str, errors: int | None = None) -> str:
    argv = [sys.executable, "-m", "coloctl.cli.main", *words]
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=BLOCK_S, check=False
    )
    return done.stdout


def roles() -> tuple[str, list[str]]:
    """Return the pair's protection and the role of each node."""
    seen = json.loads(coloctl("status", "web", "-f", "json"))
    return seen["protection"], [node["role"] for node in seen["nodes"]]


def on_both(block: Block) -> list[str]:
    """Return the commands of a block; what the page types on both machines goes there by ssh."""
    return [
        f"ssh root@{host} {shlex.quote(one)}" if one.startswith("ip ") else one
        for one in block.commands()
        for host in (("hv1", "hv2") if one.startswith("ip ") else ("",))
    ]


def test_the_commands_of_the_page_work_as_written(
    lab: Machines, build: qemu.Build, tmp_path: Path
) -> None:
    page = [one for one in blocks() if one.commands() or one.kind == "toml"]
    there = [one for one in page if not one.why]
    for one in page:
        print(f"{'left out: ' + one.why if one.why else 'typed'}: {one.section}, {one.commands()}")
    assert sum(bool(one.why) for one in page) <= 3
    lab_section = "Try it on one machine"
    for block in there:
        if block.kind == "toml":
            pair = tomllib.loads(block.text)
            pair["guest"] |= {**GUEST, "qemu": str(build.binary)}
            (tmp_path / "web.toml").write_text(tomli_w.dumps(pair))
        elif block.section != lab_section:
            typed(on_both(block), tmp_path)
            if "coloctl start web.toml" in block.commands():
                assert roles() == ("colo", ["primary", "secondary"])
    assert roles()[1][1] == "primary", "the guest did not go to hv2"
    tidy = [f"ssh root@{host} rm -r /var/lib/coloctl/images" for host in ("hv1", "hv2")]
    typed(["coloctl stop web --force --yes", *tidy], tmp_path)
    (own := tmp_path / "lab").mkdir()
    (block,) = (one for one in there if one.section == lab_section)
    said = typed(block.commands(), own)
    assert "hv2 is up." in said and NAME not in labs(), said
    assert "may still run" not in said.rpartition("coloctl stop web --yes")[2]
