"""Search the machine for what a run left: processes, namespaces, taps, files, listening ports.

Called by `chaos.run.runner` after a run was swept, and by tests; asks `procfs`, `host.listen` and
`lab.netns`. It only looks. All of it is known by the name of the pair and its
lab, by the folders that are its own, or by a mark in the environment, so that a neighbour's run is
never taken for this one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import not_
from pathlib import Path

from coloctl import paths, procfs
from coloctl.clock import Deadline
from coloctl.errors import LabError
from coloctl.host.listen import ports_in_use
from coloctl.lab import layout, netns

DEVICES = Path("/sys/class/net")
#: How long processes that were ordered to end may take, seconds.
GRACE_S = 3.0


@dataclass(frozen=True)
class Trail:
    """By what the remains of one run are known.

    ``name`` is the pair's and its lab's. ``mark`` is ``NAME=VALUE``, of the environment of all that
    it started. ``taps`` are its own in the caller's namespace, as are ``addresses``, the pair's,
    on which no process should listen any more.
    """

    name: str
    home: Path | None = None
    mark: str = ""
    taps: Sequence[str] = ()
    addresses: Sequence[str] = ()

    @property
    def folders(self) -> list[Path]:
        """The folders that belong to it alone."""
        own = [self.home] if self.home else []
        return [paths.pair_dir(self.name), *own]


def remains(trail: Trail, grace_s: float = GRACE_S) -> list[str]:
    """Describe each thing that is still there after the grace."""
    return Deadline(grace_s).poll_blocking(lambda: list(_left(trail)), 0.05, done=not_)


def _left(trail: Trail) -> Iterator[str]:
    living = processes(trail.folders, trail.mark)
    yield from (f"process {pid} still runs: {argv}" for pid, argv in sorted(living.items()))
    for name in namespaces(trail.name):
        yield f"network namespace {name} is still there"
        yield from (f"port {port} still listens in {name}" for port in _ports(name))
    for tap in trail.taps:
        if (DEVICES / tap).exists():
            yield f"tap {tap} is still there"
    for address in trail.addresses:
        yield from (f"port {port} of {address} still listens" for port in ports_in_use(address))
    yield from (f"{folder} is still there" for folder in trail.folders if folder.exists())


def processes(folders: Sequence[Path] = (), mark: str = "") -> dict[int, str]:
    """List this user's living processes, but this one, that name such a folder or carry the mark.

    Another user's process may name any folder; it is nothing that this run left.
    """
    named = re.compile("|".join(f"{re.escape(str(one))}(?![\\w.-])" for one in folders) or "(?!)")
    found = {}
    for pid in filter(procfs.ours, procfs.living().keys() - {os.getpid()}):
        with contextlib.suppress(OSError):
            words = " ".join(_strings(pid, "cmdline"))
            if named.search(words) or (mark and mark in _strings(pid, "environ")):
                found[pid] = words[:200]
    return found


def _strings(pid: int, file: str) -> list[str]:
    return os.fsdecode(Path(f"/proc/{pid}/{file}").read_bytes().rstrip(b"\0")).split("\0")


def namespaces(lab: str) -> list[str]:
    """Return those of the lab's namespaces that still have a file, even an empty one."""
    named = (layout.namespace(lab, role) for role in layout.ROLES)
    return [name for name in named if netns.path(name).exists()]


def _ports(namespace: str) -> list[int]:
    with contextlib.suppress(LabError):
        return sorted(netns.inside(namespace, lambda: ports_in_use("0.0.0.0")))
    return []
