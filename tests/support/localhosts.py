"""Both hosts of a pair as this machine, for tests of what is written beside disks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.model.pair import NodeName

Hosts = dict[NodeName, Host]


def on_hosts(act: Callable[[Hosts], Awaitable[None]]) -> None:
    """Carry ``act`` out with this machine as the host of either node."""

    async def run() -> None:
        host = open_host("local")
        try:
            await act({"a": host, "b": host})
        finally:
            await host.aclose()

    asyncio.run(run())
