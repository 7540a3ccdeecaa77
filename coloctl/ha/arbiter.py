"""Grant claims: one node per generation may be promoted.

Called by `supervisor.acts.failover_book` for the claim, by `supervisor.acts.failover`,
`supervisor.acts.start`, `supervisor.acts.switchover` and `supervisor.adopt` for the highest one;
writes through `host.durable`.

Invariant: two claims of the same generation by different nodes never both succeed, and a claim that
succeeded is remembered after a power failure. Every promotion claims first (`Arbiter.claim`), so
two supervisors that each believe that the other side is lost cannot both let their node run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from coloctl import flocks
from coloctl.errors import FailoverRefused, PreconditionFailed
from coloctl.host import durable
from coloctl.host.blocking import aside
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.sealed import NUMBER_MAX, seal, unseal

#: A claim takes a millisecond; a process that holds the lock longer is stopped, or its disk hangs.
CLAIM_DEADLINE_S = 5.0
#: Part of that for the lock; seconds.
LOCK_DEADLINE_S = 2.0
#: flock(2) has no deadline, so the lock is tried for this often; seconds.
LOCK_PERIOD_S = 0.002

#: A claim has some hundred bytes.
REGISTER_BYTES = 64 * 1024

#: The claim's file in the pair's folder, where the pair file names no other place.
FILE_NAME = "claim.json"


@dataclass(frozen=True)
class Claim:
    """``node`` was the one to be promoted in ``generation``; ``at`` is wall clock, for people."""

    pair: str
    node: NodeName
    generation: int
    at: str


class Arbiter(Protocol):
    """One register per pair, of which every claim is exclusive and durable.

    Nothing here supposes that the register is on this machine: a store that compares and swaps
    (etcd: the generation in a key, a transaction that compares it) can take its place.
    """

    async def claim(self, pair: str, node: NodeName, generation: int) -> Claim:
        """Claim ``generation`` for ``node``; then no other may be promoted in it. On disk.

        The same node may claim the same generation again: a supervisor that was restarted finishes
        its own promotion. Raises `FailoverRefused` when the generation is taken or over, and
        `PreconditionFailed` when that cannot be determined or written.
        """
        ...

    async def current(self) -> Claim | None:
        """Return the highest claim, None where there is none; raises `PreconditionFailed`."""
        ...


def open_arbiter(spec: PairSpec, folder: Path) -> Arbiter:
    """Open the arbiter of the pair file; ``folder`` is the pair's own.

    There, a claim lives exactly as long as the QEMUs that it keeps apart: the folder goes when the
    pair is stopped, and with /run when the machine boots. What outlives both are the numbers beside
    the images. ``arbiter.path`` names a file that several supervisors share.
    """
    return FileArbiter(spec.arbiter.path or folder / FILE_NAME)


class FileArbiter:
    """The register is a file; implements `Arbiter` for every process that can lock and write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looking: asyncio.Future[Claim | None] | None = None

    async def claim(self, pair: str, node: NodeName, generation: int) -> Claim:
        """See `Arbiter.claim`. Cancelled, the claim may yet be made.

        Raises `FailoverRefused` when another node or another pair holds the claim,
        `PreconditionFailed` for a register that cannot be locked or read, and after 5 s without an
        answer of its disk.
        """
        try:
            async with asyncio.timeout(CLAIM_DEADLINE_S):
                return await aside(lambda: self._claim(pair, node, generation))
        except TimeoutError:
            raise PreconditionFailed(
                f"{self.path} was not written within {CLAIM_DEADLINE_S:g} s.",
                hint="its disk does not answer; nothing is promoted before it does",
            ) from None

    async def current(self) -> Claim | None:
        """See `Arbiter.current`. One look at a time: a disk that hangs keeps one thread.

        Raises `PreconditionFailed` after 5 s without an answer of the disk.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(aside(lambda: _read(self.path)))
        try:
            return await asyncio.wait_for(asyncio.shield(self._looking), CLAIM_DEADLINE_S)
        except TimeoutError:
            raise PreconditionFailed(
                f"{self.path} could not be read within {CLAIM_DEADLINE_S:g} s.",
                hint="its disk does not answer; nothing is promoted before it does",
            ) from None

    def _claim(self, pair: str, node: NodeName, generation: int) -> Claim:
        with _locked(self.path):
            held = _read(self.path)
            if held is not None:
                _require_free(self.path, held, pair, node, generation)
            claim = Claim(pair, node, generation, datetime.now(UTC).isoformat("T", "milliseconds"))
            # Also a claim that is held: its writer may have died before it was on the disk.
            durable.replace(self.path, seal(asdict(claim)))
            return claim


def require_claimable(held: Claim | None, node: NodeName, generation: int) -> None:
    """Require that ``node`` could claim ``generation`` now; asked before a node is fenced for it.

    Raises `FailoverRefused`.
    """
    if held is None or held.generation < generation:
        return
    if (held.node, held.generation) != (node, generation):
        raise FailoverRefused(
            f"Node {node} may not be promoted in generation {generation}: node {held.node} was, "
            f"in generation {held.generation}, at {held.at}.",
            hint="another supervisor decided for this pair; end the pair on one of the two",
        )


def _require_free(path: Path, held: Claim, pair: str, node: NodeName, generation: int) -> None:
    if held.pair != pair:
        raise FailoverRefused(
            f"{path} holds the claims of pair {held.pair}, not of {pair}.",
            hint="give every pair an arbiter.path of its own",
        )
    require_claimable(held, node, generation)


def _read(path: Path) -> Claim | None:
    content = durable.read(path, REGISTER_BYTES)
    if content is None:
        return None
    try:
        return _parse(content)
    except ValueError as error:
        raise PreconditionFailed(
            f"{path} does not tell which node was promoted last: {error}.",
            hint="it was damaged from outside; where only one QEMU of the pair lives, remove it",
        ) from None


def _parse(content: bytes) -> Claim:
    """Read a claim, with a checksum or as an earlier coloctl wrote it; raises ValueError."""
    found = unseal(content.strip()).document
    if set(found) != {field.name for field in fields(Claim)}:
        raise ValueError("its keys are not those of a claim")
    number = found["generation"]
    if found["node"] not in NODES or type(number) is not int or not 0 <= number <= NUMBER_MAX:
        raise ValueError("it has no node or no number")
    if not isinstance(found["pair"], str) or not isinstance(found["at"], str):
        raise ValueError("it names no pair or no time")
    return Claim(**found)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from reading and writing the register; the lock is a file of its own.

    The register itself is replaced by every claim, so a lock on it would guard an old file. Who can
    open the lock can hold it, so it is for this user alone.
    """
    lock = path.with_name(path.name + ".lock")
    how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(lock, how, 0o600)
    except OSError as error:
        raise PreconditionFailed(
            f"{lock} cannot be locked: {error.strerror}.", hint="check the folder"
        ) from None
    try:
        if (owner := os.fstat(fd).st_uid) != os.geteuid():
            raise PreconditionFailed(
                f"{lock} belongs to user id {owner}, who could keep every claim from being made.",
                hint="remove it, and keep the register in a folder that only you may write to",
            )
        os.fchmod(fd, 0o600)  # an older coloctl made it for all users
        _acquire(fd, path)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path) -> None:
    try:
        locked = flocks.acquire(fd, LOCK_DEADLINE_S, LOCK_PERIOD_S)
    except OSError as error:
        raise PreconditionFailed(f"{path} cannot be locked: {error.strerror}.") from None
    if not locked:
        raise PreconditionFailed(
            f"Another process has held the lock of {path} for {LOCK_DEADLINE_S:g} s.",
            hint="another supervisor is claiming, or hangs",
        )
