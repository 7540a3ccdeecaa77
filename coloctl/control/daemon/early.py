"""Dial a pair's machines while the modules of its supervisor are imported.

Called by `cli.handed_over`; opens the hosts by `colo.ground`, and calls `control.daemon.serve`.

A supervisor that follows a killed one may find a failover half done. Its imports took a second, and
so did ssh and the agent on each other machine (two processors, two guests on them). Neither needs
the other. What is imported before the first dial is what `supervisor.started` and `host` need.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from importlib import import_module

from coloctl.colo.ground import open_hosts
from coloctl.errors import ColoctlError, HostOutOfReach
from coloctl.host.base import Host
from coloctl.supervisor.pair_hosts import REACH_WAIT_S, Hosts
from coloctl.supervisor.started import Started
from coloctl.urgency import join_start


async def serve_early(began: Started, listener: socket.socket, *, metrics: str) -> None:
    """Supervise the pair as `control.daemon.serve.serve` does; raises what that raises."""
    hosts: Hosts | None = None
    with contextlib.suppress(ColoctlError):  # it is met again below, where the folder is seen to
        hosts = open_hosts(began.pair, pair=began.pair.name)
    async with contextlib.AsyncExitStack() as stack:
        for host in dict.fromkeys((hosts or {}).values()):
            dialling = asyncio.create_task(_dial(host))
            stack.callback(dialling.cancel)
        await asyncio.to_thread(_import)  # the dialogue with an agent takes turns meanwhile
        from coloctl.control.daemon.serve import serve

        await serve(began.pair, listener, facts=began.facts, hosts=hosts, metrics=metrics)


async def _dial(host: Host) -> None:
    """Dial the machine of ``host``, if it is another one; the supervisor asks it again."""
    with contextlib.suppress(HostOutOfReach):
        await host.ready(REACH_WAIT_S)


def _import() -> None:
    """Import what a supervisor needs."""
    join_start()
    import_module("coloctl.control.daemon.serve")
