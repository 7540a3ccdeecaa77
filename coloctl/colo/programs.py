"""Run the programs of `nbd/` beside the disks of a pair, and send them the disks' addresses.

Called by `colo.difference`, which makes a replica equal with them, and by `colo.verify`, which
compares disks in COLO; starts them through `host.base`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from coloctl.clock import Deadline
from coloctl.errors import PreconditionFailed, Unreachable
from coloctl.host.base import Host
from coloctl.host.watching import Conversation
from coloctl.model.pair import NodeName, PairSpec
from coloctl.model.tls import TlsFiles
from coloctl.model.wires import SocketFile, Wires
from coloctl.nbd.digest import OVER
from coloctl.vm import VM


class NotComparable(Exception):
    """The disks cannot be compared this way, and no write of it is under way any more."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def socket_of(primary: VM) -> Path:
    """Return where a primary's QEMU shows its disks to programs on its own host."""
    return primary.rundir / "resync.sock"


def source(primary: VM, export: str) -> dict[str, Any]:
    """Return how an export of the primary is reached on its own host."""
    return {"unix": str(socket_of(primary)), "export": export}


def target(
    spec: PairSpec, secondary: VM, disk: int, beside: VM, tls: Mapping[NodeName, TlsFiles]
) -> dict[str, Any]:
    """Return how a replica is reached by a program on the host of ``beside``.

    ``tls`` is what `colo.tls.files` found; a program of an encrypted pair never connects without.
    """
    at = Wires(spec, secondary.rundir.parent).exports(secondary.node)
    export: dict[str, Any] = {"export": f"parent{disk}"}
    if isinstance(at, SocketFile):
        return {"unix": str(at.path), **export}
    secured = {"tls": tls[beside.node].document()} if spec.encrypted() else {}
    return {"address": at.address, "port": at.port, **export, **secured}


async def relay(digester: Conversation, listener: Conversation, deadline: Deadline) -> None:
    """Pass the replica's digests, or the news that none will come, to the program beside the
    primary.
    """
    with contextlib.suppress(Unreachable):  # it has ended: the reader of its output reports why
        while (line := await digester.hear(deadline.remaining())) is not None:
            await listener.say(line, deadline.remaining())
            if line == json.dumps(OVER):
                return
        why = digester.last_words().strip().rpartition("\n")[2] or "it wrote no more"
        gone = {"failed": f"the program that reads the replica ended: {why}"}
        await listener.say(json.dumps(gone), deadline.remaining())


async def say(to: Conversation, deadline: Deadline, message: Mapping[str, Any]) -> None:
    """Send a program one message; one that has ended shows the reason in its output."""
    with contextlib.suppress(Unreachable):
        await to.say(json.dumps(message), deadline.remaining())


@contextlib.asynccontextmanager
async def program(host: Host, module: str) -> AsyncIterator[Conversation]:
    """Run a program of ours on ``host`` while the context is open; raises `NotComparable`."""
    async with contextlib.AsyncExitStack() as running:
        try:
            argv = [*host.machine.programs, module]
            conversation = await running.enter_async_context(host.converse(argv))
        except PreconditionFailed as error:
            raise NotComparable(error.message) from error
        yield conversation
