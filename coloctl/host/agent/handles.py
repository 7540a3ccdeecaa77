"""Name what an agent holds for its client: the results of operations that make something.

Made by `host.agent.work_processes`, `host.agent.work_files` and `host.agent.work_wires`, read at
the other end by the host of another machine. Invariant: ``hold`` names one thing of one session for
ever; the number is never used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coloctl.host.identity import Identity
from coloctl.model.wires import Endpoint


@dataclass(frozen=True)
class ProcessHandle:
    """A process that the agent holds; each BEAT shows its life, and one push its death."""

    hold: int
    identity: Identity
    leader: Identity
    argv: tuple[str, ...]
    unplaced: str  #: see `host.base.Process.unplaced`


@dataclass(frozen=True)
class ChannelHandle:
    """One end of a connected stream. ``local`` is None for a unix stream."""

    hold: int
    description: str
    local: Endpoint | None


@dataclass(frozen=True)
class ListenerHandle:
    """A socket that listens; ``at`` has its real port, never 0."""

    hold: int
    at: Endpoint


@dataclass(frozen=True)
class BeaconHandle:
    """One end of the replication link that the agent beats."""

    hold: int
    session: bytes


@dataclass(frozen=True)
class FolderHandle:
    """A folder that is removed with all that is in it when it is released."""

    hold: int
    path: Path


@dataclass(frozen=True)
class ConversationHandle:
    """A program that runs; its lines of text go over the stream of that number."""

    hold: int
    stream: int
