"""Search the machine for what a run left: processes, namespaces, ports that listen there, folders.

Called by `chaos.run.runner` after a run was swept, and by tests; asks `procfs`, `host.listen` and
`lab.netns`. It only looks. All of it is known by the name of the pair and its lab, or by the
folders that are its own, so that a neighbour's run is never taken for this one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from operator import not_
from pathlib import Path

from coloctl import paths, procfs
from coloctl.clock import Deadline
from coloctl.errors import LabError
from coloctl.host.listen import ports_in_use
from coloctl.lab import layout, machines, netns
from coloctl.lab.layout import Layout
from coloctl.lab.machine_layout import MACHINES

#: How long processes that were ordered to end may take, seconds.
GRACE_S = 3.0


def remains(
    name: str,
    home: Path | None = None,
    plan: Layout = layout.TWO_HOSTS,
    grace_s: float = GRACE_S,
) -> list[str]:
    """Describe each thing of a run that is still there after the grace.

    ``name`` is the pair's and its lab's, ``home`` the folder with the pair file and its disks.
    ``plan`` is that of the lab.
    """
    folders = [paths.pair_dir(name), *([home] if home else [])]
    return Deadline(grace_s).poll_blocking(
        lambda: list(_left(name, folders, plan)), 0.05, done=not_
    )


def _left(name: str, folders: Sequence[Path], plan: Layout) -> Iterator[str]:
    living = processes(folders)
    yield from (f"process {pid} still runs: {argv}" for pid, argv in sorted(living.items()))
    if plan is MACHINES and name in machines.labs():
        yield f"machines {name} are still there"
    for role in plan.roles:
        namespace = plan.namespace(name, role)
        if netns.path(namespace).exists():  # the file is there, even an empty one
            yield f"network namespace {namespace} is still there"
            yield from (f"port {port} still listens in {namespace}" for port in _ports(namespace))
    yield from (f"{folder} is still there" for folder in folders if folder.exists())


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


def _ports(namespace: str) -> list[int]:
    with contextlib.suppress(LabError):
        return sorted(netns.inside(namespace, lambda: ports_in_use("0.0.0.0")))
    return []
