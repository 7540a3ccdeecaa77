"""What a dead supervisor left is told from its folder: who lives, who is ended, what is kept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.host.base import Identity
from coloctl.host.process import identity_of
from coloctl.journal import SIZE_MAX, Journal
from coloctl.machine.cmdline import console_option
from coloctl.model.event import Kind, Record
from coloctl.supervisor import leftovers

pytestmark = pytest.mark.unit

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PAIR = """
name = "web"
[guest]
memory = "64MiB"
[[disk]]
id = "disk0"
image = { a = "a.qcow2", b = "b.qcow2" }
[node.a]
address = "127.0.0.1"
[node.b]
address = "127.0.0.2"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    folder = tmp_path / "web"
    folder.mkdir()
    return folder


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    """Something that lives."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def identity(process: subprocess.Popen[bytes]) -> Identity:
    found = identity_of(process.pid)
    assert found is not None
    return found


def journal_of(folder: Path, *launched: tuple[str, str, Identity]) -> None:
    with Journal(folder / leftovers.JOURNAL) as journal:
        for node, role, who in launched:
            data = {"launched": role, "pid": who.pid, "start-time": who.start_time}
            journal.append(Record(Kind.OUTCOME, act="start", step="launch", node=node, data=data))


def test_an_empty_folder_has_no_leftovers(folder: Path) -> None:
    assert leftovers.living(folder) == ()
    assert asyncio.run(leftovers.end(folder)) == []


def test_what_the_journal_names_and_lives_is_found_and_ended(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    who = identity(qemu)
    journal_of(folder, ("a", "primary", who))
    assert leftovers.living(folder) == (leftovers.Leftover("a", "primary", who),)
    ((_, proof),) = asyncio.run(leftovers.end(folder))
    assert proof.pid == qemu.pid
    assert qemu.wait(5) == -9
    assert leftovers.living(folder) == ()


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    who = identity(qemu)
    journal_of(folder, ("a", "primary", Identity(who.pid, who.start_time - 1)))
    assert leftovers.living(folder) == ()
    assert asyncio.run(leftovers.end(folder)) == []
    assert qemu.poll() is None


def test_the_secondary_ends_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(SLEEP) as a, subprocess.Popen(SLEEP) as b:
        journal_of(folder, ("a", "primary", identity(a)), ("b", "secondary", identity(b)))
        ended = asyncio.run(leftovers.end(folder))
        assert [one.role for one, _ in ended] == ["secondary", "primary"]


def test_a_qemu_that_no_journal_names_is_known_by_its_command_line(folder: Path) -> None:
    option = console_option(folder / "b")
    other = console_option(folder.parent / "webmail" / "b")
    with (
        subprocess.Popen([*SLEEP, "-chardev", option]) as ours,
        subprocess.Popen([*SLEEP, "-chardev", other]) as stranger,
    ):
        # The kernel tells of the exec a moment before it shows the command line.
        while not Path(f"/proc/{ours.pid}/cmdline").read_bytes():
            time.sleep(0.001)
        (found,) = leftovers.living(folder)
        assert (found.node, found.identity.pid) == ("b", ours.pid)
        asyncio.run(leftovers.end(folder))
        assert ours.wait(5) == -9
        assert stranger.poll() is None
        stranger.kill()


def test_launches_survive_the_rotation_of_the_journal(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    path = folder / leftovers.JOURNAL
    journal_of(folder, ("a", "primary", identity(qemu)))
    with Journal(path, size_max=4096) as journal:
        for number in range(200):
            journal.append(Record(Kind.NOTE, data={"number": number, "filler": "x" * 100}))
    assert path.stat().st_size < SIZE_MAX
    assert [one.identity.pid for one in leftovers.living(folder)] == [qemu.pid]


def test_a_damaged_journal_is_not_taken_for_an_empty_one(folder: Path) -> None:
    (folder / leftovers.JOURNAL).write_text("nonsense\n{}\n")
    with pytest.raises(PreconditionFailed, match="damaged in line 1"):
        leftovers.living(folder)


def test_the_pair_file_is_remembered_as_it_was(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "etc" / "web.toml"
    source.parent.mkdir()
    source.write_text(PAIR)
    leftovers.remember(folder, source)
    source.write_text("something else")
    pair = leftovers.remembered(folder)
    assert pair.name == "web" and pair.source == source
    assert pair.disks[0].image["a"] == source.parent / "a.qcow2"
    assert (folder / leftovers.PAIR_FILE).stat().st_mode & 0o777 == 0o600


def test_a_folder_without_its_pair_file_can_still_be_cleared(folder: Path) -> None:
    with pytest.raises(ColoctlError):
        leftovers.remembered(folder)
    asyncio.run(leftovers.close_taps(folder))


def test_a_discarded_folder_leaves_nothing(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "qemu.log").write_text("words")
    leftovers.discard(folder)
    assert list(folder.parent.iterdir()) == []
    leftovers.discard(folder)
