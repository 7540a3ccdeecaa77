"""A supervisor's folder belongs to one at a time; what a dead one left is cleared or refused."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.fakes import make_spec
from support.livings import SLEEP, forged_qemu, living_qemu

from coloctl import paths
from coloctl.cli import handed_over
from coloctl.cli.verbs import run as run_module
from coloctl.cli.verbs import start as start_module
from coloctl.colo.ground import Facts, NodeFacts
from coloctl.control.daemon import spawn
from coloctl.control.daemon.spawn import claim, end_stale, refuse_living, stopped
from coloctl.errors import ColoctlError, PairBusy, PreconditionFailed
from coloctl.journal import Journal
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.event import Kind, Record
from coloctl.model.pair import PairSpec
from coloctl.supervisor import leftovers
from coloctl.supervisor.leftover import JOURNAL
from coloctl.supervisor.started import STARTED, Started, remembered
from coloctl.vm import Binary

pytestmark = pytest.mark.unit


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairSpec:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    return make_spec()


@pytest.fixture
def folder(spec: PairSpec) -> Path:
    return paths.pair_dir(spec.name)


def test_a_claimed_folder_is_private_and_its_socket_listens(spec: PairSpec, folder: Path) -> None:
    with claim(spec), socket.socket(socket.AF_UNIX) as client:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert paths.control_socket(spec.name).stat().st_mode & 0o777 == 0o600
        client.connect(str(paths.control_socket(spec.name)))


def test_a_start_leaves_nothing_beside_the_folder_of_its_pair(spec: PairSpec, folder: Path) -> None:
    """Also where `coloctl run`, which makes the pair's own folder, was the first in this place."""
    paths.make_private(folder)
    claim(spec).close()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_served_pair_cannot_be_claimed(spec: PairSpec) -> None:
    with claim(spec), pytest.raises(PairBusy, match="already serves"):
        claim(spec)
    claim(spec).close()


def test_of_many_starters_one_wins(spec: PairSpec) -> None:
    won: list[socket.socket] = []
    lost: list[PairBusy] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        try:
            won.append(claim(spec))
        except PairBusy as error:
            lost.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].close()


def test_what_a_dead_supervisor_left_is_cleared_away(spec: PairSpec, folder: Path) -> None:
    claim(spec).close()
    (folder / "a").mkdir()
    (folder / "a" / "old.log").touch()
    with claim(spec):
        assert not (folder / "a").exists()


def test_a_state_folder_without_room_is_named(
    spec: PairSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coloctl.control.daemon.spawn.listen", full)
    with pytest.raises(PreconditionFailed, match=f"{folder} .*No space left on device"):
        claim(spec)
    assert not folder.exists()


def test_a_qemu_that_still_lives_is_never_cleared_away(spec: PairSpec, folder: Path) -> None:
    claim(spec).close()
    with living_qemu(folder) as qemu:
        with pytest.raises(PairBusy, match=f"process {qemu.identity.pid}") as busy:
            claim(spec)
        assert busy.value.hint and "stop web --force" in busy.value.hint
        with pytest.raises(PairBusy):
            refuse_living(folder)
        assert folder.is_dir() and qemu.alive()


def test_a_process_that_only_says_that_it_is_a_qemu_is_nobody(spec: PairSpec, folder: Path) -> None:
    claim(spec).close()
    with forged_qemu(folder) as stranger:
        refuse_living(folder)
        assert asyncio.run(end_stale(spec.name)) == []
        assert stranger.poll() is None


def test_ending_a_stale_pair_ends_its_qemu_and_its_folder(spec: PairSpec, folder: Path) -> None:
    claim(spec).close()
    with living_qemu(folder) as qemu:
        (proof,) = asyncio.run(end_stale(spec.name))
        assert proof.pid == qemu.identity.pid and leftovers.find(folder) == ()
    assert not folder.exists()


def begin(folder: Path, act: str, outcome: str = "") -> None:
    with Journal(folder / JOURNAL) as journal:
        journal.append(Record(Kind.INTENT, act=act))
        if outcome:
            journal.append(Record(Kind.OUTCOME, act=act, data={"outcome": outcome}))


@pytest.fixture
def from_file(spec: PairSpec, tmp_path: Path) -> PairSpec:
    """A pair with a pair file, whose supervisor is gone."""
    (source := tmp_path / "web.toml").touch()
    spec = replace(spec, source=source)
    claim(spec).close()
    return spec


BINARY = Binary(Path("/opt/qemu"), Dialect("11.1.3", ReturnPath.FORBIDDEN, "reconnect-ms"))
FACTS = Facts(
    {
        "a": NodeFacts(BINARY, "tcg", Path("/opt/qemu-img"), frozenset({Path("/dev/sda")})),
        "b": NodeFacts(BINARY, "kvm", Path("qemu-img")),
    },
    "tcg",
)


def test_what_a_verb_found_is_there_for_every_supervisor(spec: PairSpec, folder: Path) -> None:
    claim(spec, FACTS).close()
    with living_qemu(folder):
        assert spawn.inherited(spec) == Started(spec, FACTS)
    claim(spec).close()  # the next start looks anew
    assert remembered(folder) == Started(spec)


def test_a_pair_that_lost_what_it_was_started_with_is_taken_for_that_of_the_verb(
    spec: PairSpec, folder: Path
) -> None:
    claim(spec, FACTS).close()
    (folder / STARTED).unlink()
    with living_qemu(folder):
        assert spawn.inherited(spec) == Started(spec)
    assert remembered(folder) == Started(spec)


def test_a_damaged_record_of_the_start_is_no_reason_to_guess(spec: PairSpec, folder: Path) -> None:
    claim(spec, FACTS).close()
    (folder / STARTED).write_text('{"pair": 4}')
    with living_qemu(folder), pytest.raises(PreconditionFailed, match="pair is 4"):
        spawn.inherited(spec)


def test_a_supervisor_reads_the_pair_file_where_the_record_is_damaged(
    spec: PairSpec, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its guest may run already: a supervisor that gives up would leave it alone."""
    read = replace(spec, source=Path("/etc/web.toml"))
    monkeypatch.setattr(start_module, "load", lambda _path: read)
    with claim(spec, FACTS) as listener:
        assert handed_over._started(listener, Path("/etc/web.toml")) == Started(spec, FACTS)
        (folder / STARTED).write_text("{}")
        assert handed_over._started(listener, Path("/etc/web.toml")) == Started(read)
    assert "is damaged: pair is missing. Now /etc/web.toml is read." in caplog.text


@pytest.mark.parametrize("outcome", ["", "done"])
def test_a_stop_that_its_supervisor_did_not_survive_is_known(
    from_file: PairSpec, folder: Path, tmp_path: Path, outcome: str
) -> None:
    assert not stopped(from_file)
    begin(folder, "start", "done")
    assert not stopped(from_file)
    begin(folder, "stop", outcome)
    assert stopped(from_file)
    assert not stopped(replace(from_file, source=tmp_path / "other.toml"))
    with living_qemu(folder):
        assert not stopped(from_file)
    with claim(from_file):  # what `start` does: the pair begins anew
        assert not stopped(from_file)


def test_a_stop_that_failed_is_no_end(from_file: PairSpec, folder: Path) -> None:
    begin(folder, "stop", "DeadlineMissed: the overlays are not merged")
    assert not stopped(from_file)


def test_run_finishes_a_stop_and_starts_nothing(
    from_file: PairSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, "stop")
    monkeypatch.setattr(run_module, "load", lambda _path: from_file)
    monkeypatch.setattr(handed_over, "prepare", lambda: None)
    ran = CliRunner().invoke(run_module.run, [str(from_file.source)], standalone_mode=False)
    assert (ran.exception, ran.return_value) == (None, 0)
    assert "it is stopped now" in ran.output and not folder.exists()


def test_a_pair_that_is_served_again_is_not_stale(spec: PairSpec, folder: Path) -> None:
    with claim(spec), pytest.raises(PairBusy):
        asyncio.run(end_stale(spec.name))
    assert folder.is_dir()


def test_a_supervisor_that_ends_at_once_is_told_with_its_last_words(
    spec: PairSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys; sys.exit('error: no luck')"
    monkeypatch.setattr(spawn, "_argv", lambda *_: [sys.executable, "-c", script])
    failure = pytest.raises(ColoctlError, match="exit code 1: error: no luck")
    with failure, spawn.spawned_supervisor(spec) as born, born.connect():
        pass
    assert not folder.exists()


def test_an_error_in_the_block_ends_the_supervisor(
    spec: PairSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "_argv", lambda *_: SLEEP)
    monkeypatch.setattr(spawn, "GREETING_WAIT_S", 0.1)
    monkeypatch.setattr(spawn, "END_WAIT_S", 0.1)
    with pytest.raises(KeyboardInterrupt), spawn.spawned_supervisor(spec) as born:
        process = born._process
        assert process.poll() is None
        raise KeyboardInterrupt
    assert process.poll() == -9
    assert not folder.exists()


def test_a_kept_supervisor_outlives_an_error(
    spec: PairSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "_argv", lambda *_: SLEEP)
    with pytest.raises(KeyboardInterrupt), spawn.spawned_supervisor(spec) as born:
        born.keep()
        raise KeyboardInterrupt
    assert born._process.poll() is None and folder.is_dir()
    born._process.kill()
    born._process.wait()
