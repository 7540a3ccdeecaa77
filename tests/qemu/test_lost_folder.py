"""Real pairs whose state folder is removed while they run, and what verbs say of them.

Goal: a removed folder takes neither failover nor advice away. Method: the folder goes, as clean-up
jobs do it, with and without a supervisor; then a node dies, or an operator types what he is told.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.moments import MARK, Mortal, mortal
from support.orphans import end, leave_alone

from coloctl import paths
from coloctl.errors import ColoctlError
from coloctl.host import open_host
from coloctl.host.process import identity_of
from coloctl.lab import qemu
from coloctl.supervisor import leftovers

pytestmark = pytest.mark.qemu


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    with mortal(tmp_path, qemu.provide("11.1")) as pair:
        yield pair


def protected(pair: Mortal) -> tuple[int, ...]:
    pair.type("start", str(pair.file))
    pair.mark()
    assert pair.view()["protection"] == "colo"
    return pair.qemus()


def seen(pair: Mortal) -> dict[str, Any]:
    """The pair as soon as its supervisor can be asked again."""

    def answers() -> bool:
        try:
            return bool(pair.view())
        except ColoctlError:
            return False

    pair.until(answers)
    return pair.view()


def marked(pair: Mortal, pid: int) -> bool:
    """As `Mortal.marked`, where the log that QEMU answers to has no path any more."""
    byte, offset, length = MARK
    log = Path(f"/proc/{pid}/fd/1")
    before = log.stat().st_size
    line = (
        f'qemu-io -d /machine/peripheral/vd0/virtio-backend "read -P {byte:#x} {offset} {length}"'
    )
    pair.qmp(pair.primary(), "human-monitor-command", **{"command-line": line})
    said = log.read_bytes()[before:].decode()
    return f"read {length}/{length} bytes" in said and "failed" not in said


def lives(pid: int) -> bool:
    """Whether the process has not ended; one that its parent has not reaped has."""
    identity = identity_of(pid)
    return identity is not None and asyncio.run(leftovers.exists(identity, "", open_host("local")))


def test_a_pair_whose_folder_was_removed_is_served_and_fails_over(pair: Mortal) -> None:
    before = protected(pair)
    folder = paths.pair_dir(pair.name)
    shutil.rmtree(folder)
    view = seen(pair)
    assert view["protection"] == "colo" and pair.qemus() == before
    pair.until(lambda: "made again" in pair.view()["reason"])
    assert "could not" in pair.view()["reason"]  # the monitors' sockets cannot be made anew
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {one.name for one in folder.iterdir()} >= {"control.sock", "journal.jsonl", "pair.toml"}
    end(before[0])
    pair.until(lambda: pair.view()["protection"] == "unprotected")
    assert pair.qemus() == before[1:] and pair.primary() == "b" and marked(pair, before[1])
    assert pair.view()["generation"] == view["generation"] + 1


def test_a_node_that_dies_with_the_folder_is_failed_over_all_the_same(pair: Mortal) -> None:
    """Nothing has looked at the folder yet when the decision has to be written down."""
    before = protected(pair)
    shutil.rmtree(paths.pair_dir(pair.name))
    end(before[0])
    assert seen(pair)
    pair.until(lambda: pair.view()["protection"] == "unprotected")
    assert pair.qemus() == before[1:] and marked(pair, before[1])


def test_the_next_supervisor_is_reached_where_the_last_one_rebound_its_socket(
    pair: Mortal,
) -> None:
    """Its watcher hands the first socket on, whose path is gone for ever."""
    protected(pair)
    (paths.pair_dir(pair.name) / "control.sock").unlink()
    first = seen(pair)["supervisor_pid"]
    end(first)
    pair.until(lambda: seen(pair)["supervisor_pid"] != first)
    assert pair.view()["protection"] == "colo" and pair.marked()


def test_without_folder_and_supervisor_every_verb_says_what_runs_and_what_helps(
    pair: Mortal,
) -> None:
    before = protected(pair)
    leave_alone(pair)
    shutil.rmtree(paths.pair_dir(pair.name))
    for words in (
        ("status", pair.name),
        ("status",),
        ("start", str(pair.file)),
        ("start", str(pair.file), "--adopt"),
        ("stop", pair.name, "--yes"),
    ):
        said = " ".join(pair.type(*words).split())
        assert all(f"process {pid}" in said for pid in before), (words, said)
        assert f"coloctl stop {pair.name} --force" in said and "cannot be taken over" in said
        assert "--adopt" not in said, (words, said)
    assert all(map(lives, before))
    assert "is stopped (killed)" in pair.type("stop", pair.name, "--force", "--yes")
    assert not any(map(lives, before))
    assert "No pair called" in pair.type("status", pair.name)


def test_a_pair_without_supervisor_is_not_given_up_by_advice(pair: Mortal) -> None:
    before = protected(pair)
    leave_alone(pair)
    command = f"coloctlstart{pair.file}--adopt"  # a long path is broken where the column ends
    for words in (("status",), ("status", pair.name), ("stop", pair.name, "--yes")):
        said = " ".join(pair.type(*words).split())
        assert command in said.replace(" ", ""), (words, said)
        assert "its guest may be serving clients" in said
        assert all(f"process {pid}" in said for pid in before)
    (one,) = json.loads(pair.type("status", "-f", "json"))["pairs"]
    assert (one["supervisor"], one["view"]) == ("gone", None) and "--adopt" in one["hint"]
    # Also where the link to the pair file is gone: the journal knows.
    (paths.pair_dir(pair.name) / "source").unlink()
    assert command in "".join(pair.type("status").split())
    pair.type("start", str(pair.file), "--adopt")
    assert pair.qemus() == before and pair.marked()
