"""Define the records that a host returns: what it is, how it is reached, and what it found.

Used by `host.base`, which defines the operations, by every module that implements them, and by
`host.access` and `host.watching`. Invariant: each record is immutable and holds nothing of a
process or a connection, so that it can be sent from one machine to another.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from coloctl.host.identity import Identity
from coloctl.model import units
from coloctl.model.wires import Endpoint


class Contact(StrEnum):
    """State of the connection to a host."""

    HERE = "here"  #: this machine: there is no connection that could be lost
    CONNECTED = "connected"
    LOST = "lost"  #: there was one; another is being made
    NEVER = "never"  #: there has been none yet


@dataclass(frozen=True)
class Reach:
    """State of the connection to a host, from the monotonic second ``since_s`` of this process on.

    ``why`` is a sentence where it is not: ssh's own reason, or "Nothing came for 3.0 s.".
    ``session`` grows when the other end has forgotten everything: another agent, another boot.
    ``heard_s`` is the second of the agent's newest report, and None before the first.
    """

    contact: Contact
    since_s: float
    why: str = ""
    session: int = 0
    round_trip_ms: float = 0.0
    heard_s: float | None = None

    @property
    def out(self) -> bool:
        """True while the host cannot be asked anything."""
        return self.contact in (Contact.LOST, Contact.NEVER)

    def trips_s(self, count: int) -> float:
        """Return how long ``count`` questions are on their way, one after the other, seconds.

        A limit on what a machine does is longer by that: a slow way to it is no fault of its own.
        """
        return count * self.round_trip_ms / 1000


@dataclass(frozen=True)
class Machine:
    """The machine of a host: its identity, and where this user's coloctl keeps files on it.

    ``programs`` begins the command line of a program of coloctl there; the module's name follows.
    ``installed`` is the version of a coloctl that can supervise there, or "".
    """

    name: str
    machine_id: str
    boot_id: str
    pid_namespace: str
    euid: int
    python: str
    version: str
    state_dir: Path
    cache_dir: Path
    registry_dir: Path
    overlay_dir: Path
    programs: tuple[str, ...]
    installed: str = ""
    network: str = ""  #: of the namespace in which the agent works, or ""

    def pair_dir(self, pair: str) -> Path:
        """Return the folder of one pair on this machine."""
        return self.state_dir / pair


@dataclass(frozen=True)
class Death:
    """The end of a process, as it was noticed at the monotonic second ``at_s``.

    ``exit_code`` is known for coloctl's own children only; -N means signal N. ``memory_limit``
    is in bytes where the kernel killed it at the limit of its control group, and 0 where the whole
    machine was out of memory; None for any other end.

    Note the difference: a `Death` is what was noticed; a `DeathProof` is what a fence may rest on.
    """

    pid: int
    at_s: float
    exit_code: int | None
    memory_limit: int | None = None

    def __str__(self) -> str:
        if self.memory_limit is not None:
            limit = f" at its memory limit of {units.size(self.memory_limit)}"
            lack = limit if self.memory_limit else " because memory ran out"
            return f"process {self.pid} was killed by the kernel{lack}"
        if self.exit_code is None:
            return f"process {self.pid} is gone"
        if self.exit_code >= 0:
            return f"process {self.pid} ended with exit code {self.exit_code}"
        try:
            name = signal.Signals(-self.exit_code).name
        except ValueError:
            name = f"signal {-self.exit_code}"
        return f"process {self.pid} was killed by {name}"


@dataclass(frozen=True)
class DeathProof:
    """The result of a fence: this very process can never run another instruction.

    ``how`` is one of ``sigterm`` and ``sigkill`` (coloctl's signal, then the kernel reported the
    end), ``already-dead`` (gone before any signal), ``identity-gone`` (no process has that pid
    and start time) and ``rebooted`` (its machine has booted since). ``at_s`` is the monotonic
    second of the proof.
    """

    pid: int
    start_time: int
    how: str
    at_s: float
    exit_code: int | None


@dataclass(frozen=True)
class Completed:
    """The end of a short program; ``code`` is negative when a signal ended it."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class LogPiece:
    """A piece of a log: ``data`` begins at the offset ``begin``; the file has ``size`` bytes.

    ``begin`` is later than what was asked for where those bytes are not kept any more, and 0 where
    the file had to be emptied. ``data`` is empty at the end of the file.
    """

    begin: int
    data: bytes
    size: int


@dataclass(frozen=True)
class ThreadTimes:
    """The seconds that each thread ran and waited for a processor, read at ``at_s``.

    ``at_s`` is a monotonic second of this process; it is older than the answer on a host at the
    other end of a connection.
    """

    at_s: float
    threads: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Friends:
    """The connections of one process to one address, as its own kernel shows them.

    ``pid`` counts only under the kernel of the server, for a unix socket; None where the server is
    under another. ``ends`` are the process's own ends of its TCP connections.
    """

    pid: int | None
    ends: frozenset[Endpoint] = frozenset()


@dataclass(frozen=True)
class Stray:
    """A process that holds a listening socket; ``incoming``: it was started as a secondary."""

    identity: Identity
    incoming: bool
