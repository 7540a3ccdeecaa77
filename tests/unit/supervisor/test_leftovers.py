"""What a dead supervisor left is told from its folder: who lives, who is ended, what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.elsewhere import Elsewhere, on_another_machine
from support.livings import SLEEP, forged_qemu, living_qemu
from support.pairfiles import pair_text

from coloctl import procfs
from coloctl.errors import FencingFailed, PreconditionFailed
from coloctl.host.base import DeathProof, Identity
from coloctl.host.process import identity_of
from coloctl.journal import SIZE_MAX, Journal
from coloctl.model import event
from coloctl.model.event import Kind, Record
from coloctl.model.pair import NodeName, Role
from coloctl.supervisor import leftover, leftovers
from coloctl.supervisor.discovery import with_strays
from coloctl.supervisor.leftover import Leftover
from coloctl.supervisor.pair_hosts import opened
from coloctl.supervisor.reconcile import KnownQemu
from coloctl.supervisor.started import STARTED, remembered

pytestmark = pytest.mark.unit

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become another user")
PAIR = pair_text()


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


def end(folder: Path) -> list[tuple[Leftover, DeathProof]]:
    async def ended() -> list[tuple[Leftover, DeathProof]]:
        async with opened(folder) as hosts:
            return await leftovers.end(folder, hosts)

    return asyncio.run(ended())


def close_taps(folder: Path) -> None:
    async def closed() -> None:
        async with opened(folder) as hosts:
            await leftovers.close_taps(folder, hosts)

    asyncio.run(closed())


def strays(
    folder: Path, known: dict[NodeName, KnownQemu], left: dict[NodeName, KnownQemu] | None = None
) -> dict[NodeName, KnownQemu]:
    async def found() -> dict[NodeName, KnownQemu]:
        async with opened(folder) as hosts:
            return await with_strays(folder, hosts, known, left or {})

    return asyncio.run(found())


def journal_of(folder: Path, *launched: tuple[str, str, Identity]) -> None:
    with Journal(folder / leftover.JOURNAL) as journal:
        for node, role, who in launched:
            data = {"launched": role, **who.to_json()}
            journal.append(Record(Kind.OUTCOME, act="start", step="launch", node=node, data=data))


def test_an_empty_folder_has_no_leftovers(folder: Path) -> None:
    assert leftovers.find(folder) == ()
    assert end(folder) == []


def test_what_the_journal_names_and_lives_is_found_and_ended(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    who = identity(qemu)
    journal_of(folder, ("a", "primary", who))
    assert leftovers.find(folder) == (Leftover("a", "primary", who),)
    ((_, proof),) = end(folder)
    assert proof.pid == qemu.pid
    assert qemu.wait(5) == -9
    assert leftovers.find(folder) == ()


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    who = identity(qemu)
    journal_of(folder, ("a", "primary", Identity(who.pid, who.start_time - 1)))
    assert leftovers.find(folder) == ()
    assert end(folder) == []
    assert qemu.poll() is None


def test_the_secondary_ends_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(SLEEP) as a, subprocess.Popen(SLEEP) as b:
        journal_of(folder, ("a", "primary", identity(a)), ("b", "secondary", identity(b)))
        ended = end(folder)
        assert [one.role for one, _ in ended] == ["secondary", "primary"]


def test_a_qemu_that_no_journal_names_is_known_by_the_sockets_that_it_holds(
    folder: Path,
) -> None:
    with (
        living_qemu(folder, "b", "-incoming", "defer") as ours,
        living_qemu(folder.parent / "webmail", "b") as stranger,
    ):
        (found,) = leftovers.find(folder)
        assert (found.node, found.role, found.identity) == ("b", "secondary", ours.identity)
        end(folder)
        assert not ours.alive()
        assert stranger.alive()


def test_what_a_wrapper_started_is_told_as_the_wrapper(folder: Path) -> None:
    shell = ["sh", "-c", '"$@" & wait', "sh"]
    with living_qemu(folder, "a", wrapper=shell) as wrapper:
        assert [one.identity for one in leftovers.find(folder)] == [wrapper.identity]


def test_removed_socket_files_hide_no_qemu(folder: Path) -> None:
    with living_qemu(folder, "a") as ours:
        shutil.rmtree(folder / "a")
        assert [one.identity for one in leftovers.find(folder)] == [ours.identity]


@pytest.mark.parametrize("uid", [None, pytest.param(NOBODY, marks=AS_ROOT)])
def test_words_on_a_command_line_make_no_qemu(folder: Path, uid: int | None) -> None:
    """Any local user can run a process with the words by which QEMUs were once told apart."""
    with forged_qemu(folder, "a", uid=uid) as stranger, living_qemu(folder, "b") as ours:
        assert [one.identity for one in leftovers.find(folder)] == [ours.identity]
        launches = strays(folder, {})
        assert {node: one.identity for node, one in launches.items()} == {"b": ours.identity}
        end(folder)
        assert stranger.poll() is None and not ours.alive()


def test_a_stray_never_takes_the_place_of_what_the_journal_names(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    known = KnownQemu(Role.PRIMARY, identity(qemu))
    with living_qemu(folder, "a"):
        assert strays(folder, {"a": known}) == {"a": known}
        qemu.kill()
        qemu.wait()
        assert strays(folder, {"a": known})["a"].identity != known.identity


@pytest.mark.parametrize("changed", [{"boot": "another"}, {"uid": 54321}, {"exe": "/bin/other"}])
def test_a_recorded_process_is_the_same_in_every_way_or_is_not_touched(
    folder: Path, qemu: subprocess.Popen[bytes], changed: dict[str, Any]
) -> None:
    """Of another boot: proven gone. Of another user or program: a doubt, so neither ended nor
    taken for gone."""
    journal_of(folder, ("a", "primary", replace(identity(qemu), **changed)))
    if "boot" in changed:
        assert leftovers.find(folder) == ()
        assert end(folder) == []
    else:
        assert len(leftovers.find(folder)) == 1
        with pytest.raises(FencingFailed, match="but it"):
            end(folder)
    assert qemu.poll() is None


def test_launches_survive_the_rotation_of_the_journal(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    path = folder / leftover.JOURNAL
    journal_of(folder, ("a", "primary", identity(qemu)))
    with Journal(path, size_max=4096) as journal:
        for number in range(200):
            journal.append(Record(Kind.NOTE, data={"number": number, "filler": "x" * 100}))
    assert path.stat().st_size < SIZE_MAX
    assert [one.identity.pid for one in leftovers.find(folder)] == [qemu.pid]


def test_a_damaged_journal_is_not_taken_for_an_empty_one(folder: Path) -> None:
    (folder / leftover.JOURNAL).write_text("nonsense\n{}\n")
    with pytest.raises(PreconditionFailed, match="damaged in line 1"):
        leftovers.find(folder)


def test_a_folder_without_its_pair_can_still_be_cleared(folder: Path) -> None:
    assert remembered(folder) is None
    close_taps(folder)
    (folder / STARTED).write_text("damaged")
    close_taps(folder)


def test_a_discarded_folder_leaves_nothing(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "qemu.log").write_text("words")
    leftovers.discard(folder)
    assert list(folder.parent.iterdir()) == []
    leftovers.discard(folder)


@AS_ROOT
def test_another_users_socket_of_the_same_name_hides_no_qemu(folder: Path) -> None:
    """The name of a socket is a word too: in a mount namespace of his own, any user can have it."""
    with living_qemu(folder, "b") as ours:
        path = folder / "b" / "qmp.sock"
        with _shadow(path) as stranger:
            inode = procfs.listeners([path])[path]
            assert procfs.holding({procfs.socket_name(inode)}) == {ours.identity.pid}
            assert [one.identity for one in leftovers.find(folder)] == [ours.identity]
            end(folder)
            assert stranger.poll() is None and not ours.alive()


@contextlib.contextmanager
def _shadow(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another user's process listens at a socket that was bound at ``path`` in its own mounts."""
    program = (
        f"mount -t tmpfs none {path.parent} && exec perl -MIO::Socket::UNIX -MPOSIX -e "
        f'\'$s = IO::Socket::UNIX->new(Local => "{path}", Listen => 1) or die; '
        f'setuid({NOBODY}); $| = 1; print "ready\\n"; sleep 60\''
    )
    argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_a_wrapper_whose_qemu_has_died_is_no_new_qemu(
    folder: Path, qemu: subprocess.Popen[bytes]
) -> None:
    """It holds the sockets still; the journal knows it as the leader of what is dead."""
    dead = identity(qemu)
    with living_qemu(folder, "a") as wrapper:
        qemu.kill()
        qemu.wait()
        known = KnownQemu(Role.PRIMARY, dead, wrapper.identity)
        assert strays(folder, {"a": known}) == {"a": known}


@pytest.fixture
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return on_another_machine(folder, monkeypatch)


def test_of_a_machine_out_of_reach_the_latest_qemu_may_live(
    folder: Path, qemu: subprocess.Popen[bytes], elsewhere: Elsewhere
) -> None:
    """Each earlier one was proven gone before the latest was launched."""
    who = identity(qemu)
    first, latest = (Identity(who.pid, who.start_time - back) for back in (2, 1))
    journal_of(folder, ("b", "secondary", first), ("a", "primary", who), ("b", "secondary", latest))
    found = leftovers.find(folder)
    assert elsewhere.dialled == 1
    assert [(one.node, one.identity, bool(one.doubt)) for one in found] == [
        ("a", who, False),
        ("b", latest, True),
    ]
    said = leftover.told(folder, found)
    assert "the primary on node a" in said and "still runs" in said
    assert f"whether the secondary on node b (process {latest.pid}) still runs: ssh://hv2" in said
    assert "stop web --force" in leftover.advice(folder, found)
    assert "--adopt" in leftover.advice(folder, [found[1]])  # as far as that is known


def test_a_qemu_whose_end_is_in_the_journal_is_not_in_doubt(
    folder: Path, qemu: subprocess.Popen[bytes], elsewhere: Elsewhere
) -> None:
    """Its machine may be out of reach for ever; the proof stays true."""
    who = identity(qemu)
    journal_of(folder, ("b", "secondary", who))
    assert [bool(one.doubt) for one in leftovers.find(folder)] == [True]
    with Journal(folder / leftover.JOURNAL) as journal:
        data = {event.ENDED: "sigkill", **who.to_json()}
        journal.append(Record(Kind.OBSERVATION, node="b", data=data))
    assert leftovers.find(folder) == ()
    journal_of(folder, ("b", "secondary", replace(who, start_time=who.start_time - 1)))
    assert [bool(one.doubt) for one in leftovers.find(folder)] == [True]


def test_what_lives_out_of_reach_is_not_forgotten_by_an_end(
    folder: Path, qemu: subprocess.Popen[bytes], elsewhere: Elsewhere
) -> None:
    """What can be reached is ended; the folder, which names the rest, is to stay."""
    with subprocess.Popen(SLEEP) as there:
        journal_of(folder, ("a", "primary", identity(qemu)), ("b", "secondary", identity(there)))
        with pytest.raises(FencingFailed, match=r"node b \(process \d+\) still runs") as failed:
            end(folder)
        assert failed.value.hint and "stop web --force --without b` where" in failed.value.hint
        assert qemu.wait(5) == -9 and there.poll() is None
        elsewhere.answers = True
        ((one, proof),) = end(folder)
        assert (one.node, proof.pid) == ("b", there.pid)
        assert leftovers.find(folder) == ()


def test_a_verb_that_shows_something_dials_no_machine(
    folder: Path, elsewhere: Elsewhere, qemu: subprocess.Popen[bytes]
) -> None:
    journal_of(folder, ("b", "secondary", identity(qemu)))
    (found,) = leftovers.find(folder, dial=False)
    assert (found.node, found.doubt) == ("b", "ssh://hv2 was not asked.")
    assert elsewhere.dialled == 0
    assert leftovers.find_strays(folder) == () and elsewhere.dialled == 0


def test_a_qemu_that_was_left_behind_is_no_part_of_the_pair(folder: Path) -> None:
    """It holds its sockets until it is ended; a supervisor that follows must not adopt it."""
    with living_qemu(folder, "b", "-incoming", "defer") as ours:
        left = KnownQemu(Role.SECONDARY, ours.identity)
        assert strays(folder, {"b": left}, {"b": left}) == {}
        assert strays(folder, {}, {"b": left}) == {}
        assert strays(folder, {}).keys() == {"b"}


def test_a_journal_s_qemu_out_of_reach_is_replaced_by_no_stray(
    folder: Path, elsewhere: Elsewhere
) -> None:
    known = KnownQemu(Role.SECONDARY, Identity(1 << 22, 1))
    assert strays(folder, {"b": known}) == {"b": known}


async def test_the_folder_of_a_pair_that_has_ended_is_removed_from_another_machine(
    folder: Path, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """Its logs too; that of this machine is left to its owner."""
    elsewhere.answers = True
    elsewhere.state_dir = tmp_path / "there"
    there = tmp_path / "there" / folder.name
    for log in (there / "b" / "qemu.log", folder / "a" / "qemu.log"):
        log.parent.mkdir(parents=True)
        log.write_text("last words\n")
    async with opened(folder) as hosts:
        assert await leftovers.end(folder, hosts) == []
    assert not there.exists()
    assert (folder / "a" / "qemu.log").exists()
