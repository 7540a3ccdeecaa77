"""One node per generation: whoever asks, however the machine or the disk fails."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from coloctl.errors import ColoctlError, FailoverRefused, PreconditionFailed
from coloctl.ha import arbiter
from coloctl.ha.arbiter import Claim, FileArbiter, require_claimable
from coloctl.host import durable
from coloctl.model.pair import NodeName

pytestmark = pytest.mark.unit


def claim(path: Path, node: NodeName, generation: int, pair: str = "web") -> Claim:
    return asyncio.run(FileArbiter(path).claim(pair, node, generation))


def current(path: Path) -> Claim | None:
    return asyncio.run(FileArbiter(path).current())


def test_nothing_is_claimed_at_first(tmp_path: Path) -> None:
    assert current(tmp_path / "c") is None


def test_claims_grow_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "c"
    for generation, node in ((1, "b"), (2, "a"), (7, "a")):
        made = claim(path, node, generation)  # type: ignore[arg-type]
        assert (made.pair, made.node, made.generation) == ("web", node, generation)
        assert current(path) == made
    assert {one.name for one in tmp_path.iterdir()} == {"c", "c.lock"}


@pytest.mark.parametrize(("node", "generation"), [("a", 3), ("a", 2), ("b", 2), ("b", 0)])
def test_what_is_taken_or_over_is_refused(tmp_path: Path, node: NodeName, generation: int) -> None:
    path = tmp_path / "c"
    held = claim(path, "b", 3)
    with pytest.raises(FailoverRefused, match="node b was, in generation 3") as refused:
        claim(path, node, generation)
    assert refused.value.hint
    assert current(path) == held


def test_a_restarted_supervisor_may_claim_its_own_again(tmp_path: Path) -> None:
    claim(tmp_path / "c", "b", 3)
    assert claim(tmp_path / "c", "b", 3).generation == 3


def test_the_same_is_known_before_anybody_is_fenced() -> None:
    held = Claim("web", "b", 3, "then")
    require_claimable(None, "a", 1)
    require_claimable(held, "a", 4)
    require_claimable(held, "b", 3)
    for node, generation in (("a", 3), ("b", 2), ("a", 1)):
        with pytest.raises(FailoverRefused):
            require_claimable(held, node, generation)  # type: ignore[arg-type]


def test_pairs_do_not_share_a_register(tmp_path: Path) -> None:
    claim(tmp_path / "c", "b", 3)
    with pytest.raises(FailoverRefused, match="pair web, not of db") as refused:
        claim(tmp_path / "c", "b", 4, "db")
    assert "arbiter.path" in str(refused.value.hint)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"pair": "web", "node": "b"',
        b"[]",
        b'{"pair": "web", "node": "c", "generation": 1, "at": ""}',
        b'{"pair": "web", "node": "b", "generation": "1", "at": ""}',
        b'{"pair": "web", "node": "b", "generation": 1}',
        b"\xff\xfe",
        b'{"pair": "web", "node": "b", "generation": ' + b"9" * 5000 + b', "at": ""}',
        b'{"pair": "web", "node": "b", "generation": ' + b"9" * 50 + b', "at": ""}',
        b'{"pair": "web", "node": "b", "generation": -1, "at": ""}',
        b'{"pair": "web", "node": {}, "generation": 1, "at": ""}',
        b'{"pair": 1, "node": "b", "generation": 1, "at": ""}',
        b'{"a":' * 700,
        b"\0" * 300,
    ],
)
def test_a_torn_register_is_never_taken_for_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    for ask in (lambda: claim(path, "b", 9), lambda: current(path)):
        with pytest.raises(PreconditionFailed, match="does not tell") as failed:
            ask()
        assert failed.value.hint
    assert path.read_bytes() == content


def test_no_flipped_bit_is_another_claim(tmp_path: Path) -> None:
    path = tmp_path / "c"
    held = claim(path, "b", 3)
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert arbiter._read(path) == held
        except PreconditionFailed as failed:
            assert str(path) in failed.message


def test_a_claim_that_an_earlier_coloctl_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text('{"pair": "web", "node": "b", "generation": 3, "at": "then"}\n')
    assert current(path) == Claim("web", "b", 3, "then")


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c")
    with pytest.raises(PreconditionFailed, match="no file"):
        current(tmp_path / "c")


def test_half_a_new_register_beside_it_means_nothing(tmp_path: Path) -> None:
    held = claim(tmp_path / "c", "b", 1)
    (tmp_path / ".c.1234.new").write_bytes(b'{"pair"')
    assert current(tmp_path / "c") == held
    assert claim(tmp_path / "c", "a", 2).node == "a"


@pytest.mark.parametrize("failing", ["write", "fsync", "close after rename"])
def test_a_disk_that_fails_leaves_the_old_word_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "c"
    claim(path, "b", 1)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "close after rename":
            patch.setattr("coloctl.host.durable._sync_folder", fail)
        else:
            patch.setattr(os, failing, fail)
        with pytest.raises(PreconditionFailed, match="No space left"):
            claim(path, "a", 2)
    held = current(path)
    assert held is not None
    assert (held.node, held.generation) in {("b", 1), ("a", 2)}
    assert claim(path, "a", 2).node == "a"  # may be asked for again, and is durable then


def test_a_register_without_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="No such file"):
        claim(tmp_path / "absent" / "c", "b", 1)


def test_a_lock_that_is_never_released_does_not_hang_a_failover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arbiter, "LOCK_DEADLINE_S", 0.05)
    with (tmp_path / "c.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PreconditionFailed, match="lock"):
            claim(tmp_path / "c", "b", 1)
    assert claim(tmp_path / "c", "b", 1).generation == 1


def test_the_lock_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Who can open it can hold it, and every claim would fail; one made for all is mended."""
    lock = tmp_path / "c.lock"
    claim(tmp_path / "c", "b", 1)
    assert lock.stat().st_mode & 0o777 == 0o600
    lock.chmod(0o755)
    claim(tmp_path / "c", "b", 2)
    assert lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file takes root to make")
def test_a_lock_of_another_user_is_named_and_not_trusted(tmp_path: Path) -> None:
    lock = tmp_path / "c.lock"
    lock.touch()
    os.chown(lock, 65534, 65534)
    with pytest.raises(PreconditionFailed, match=r"c\.lock belongs to user id 65534") as refused:
        claim(tmp_path / "c", "b", 1)
    assert refused.value.hint


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "c.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PreconditionFailed, match=r"c\.lock cannot be locked"):
        claim(tmp_path / "c", "b", 1)
    assert not (tmp_path / "elsewhere").exists()


async def test_a_register_that_hangs_is_given_up_and_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file on a server that is gone: reading never ends, and no second thread waits too."""
    monkeypatch.setattr(arbiter, "CLAIM_DEADLINE_S", 0.05)
    began, may_end = [], threading.Event()

    def hang(path: Path, limit: int) -> bytes | None:
        began.append(path)
        may_end.wait(20)
        return None

    monkeypatch.setattr(durable, "read", hang)
    register = FileArbiter(tmp_path / "c")

    for _ in range(3):
        with pytest.raises(PreconditionFailed, match="could not be read within"):
            await register.current()
    assert len(began) == 1
    may_end.set()
    monkeypatch.setattr(arbiter, "CLAIM_DEADLINE_S", 5.0)
    assert await register.current() is None


def test_a_pipe_in_place_of_the_register_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c")
    with pytest.raises(PreconditionFailed, match="no file"):
        current(tmp_path / "c")


def _race(path: Path, node: NodeName, rounds: int, to_parent: Connection) -> None:
    """Claims every generation as soon as it is told to; answers those that it got."""
    won = []
    for generation in range(1, rounds + 1):
        to_parent.send(generation)
        to_parent.recv()
        try:
            claim(path, node, generation)
        except ColoctlError as error:
            assert isinstance(error, FailoverRefused), error
        else:
            won.append(generation)
    to_parent.send(won)


def test_of_two_processes_that_race_one_wins(tmp_path: Path) -> None:
    rounds, path = 40, tmp_path / "c"
    context = multiprocessing.get_context("fork")
    racers, ends = [], []
    for node in ("a", "b"):
        ours, theirs = context.Pipe()
        racers.append(context.Process(target=_race, args=(path, node, rounds, theirs)))
        ends.append(ours)
    for racer in racers:
        racer.start()
    try:
        for _ in range(rounds):
            for end in ends:
                assert end.poll(30)
                end.recv()
            for end in ends:
                end.send("go")
        won = []
        for end in ends:
            assert end.poll(30)
            won.append(set(end.recv()))
    finally:
        for racer in racers:
            racer.join(30)
            racer.kill()
    assert won[0] | won[1] == set(range(1, rounds + 1))
    assert not won[0] & won[1]
    assert json.loads(path.read_bytes())["generation"] == rounds
