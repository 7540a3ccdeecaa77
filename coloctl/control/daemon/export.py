"""Feed a supervisor's metrics with its events, and serve them over HTTP for as long as it lives.

Used by `control.daemon.serve` where an address was given; counts in `metrics/`, asks
`ha.monitoring_path` which silences came near their limits.

Invariant: nothing that goes wrong here reaches the supervisor: the pair matters more than its
figures. An address that cannot be had is logged and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from coloctl.control.daemon.http import Address, MetricsServer, parse_address
from coloctl.errors import ColoctlError
from coloctl.ha.monitoring_path import monitoring_paths
from coloctl.metrics import Metrics
from coloctl.model.observation import Observation
from coloctl.model.pairevent import PairEvent, StateChanged
from coloctl.model.protection import Protection
from coloctl.model.view import PairView

log = logging.getLogger(__name__)

#: How often the pair is published when nothing happens, seconds.
PUBLISH_S = 1.0

Look = Callable[[], PairView]


class Export:
    """Takes what the supervisor says, and looks at the pair each second."""

    def __init__(self, metrics: Metrics, address: Address) -> None:
        self.metrics = metrics
        self._address = address
        self._look: Look | None = None
        self._complaint = ""

    def watch(self, look: Look) -> None:
        """Publish what ``look`` returns, from now on."""
        self._look = look
        self._publish()

    def event(self, event: PairEvent) -> None:
        """Count ``event``; a change of state is published at once."""
        try:
            self.metrics.event(event)
        except Exception:
            log.exception("%s was not counted", event.NAME)
        if isinstance(event, StateChanged):
            self._publish()

    def observed(self, seen: Observation) -> None:
        """Remember silences that reached half of their limits until they end."""
        near = {
            (path.node or "", path.name)
            for path in monitoring_paths(seen)
            if path.now_ms * 2 > path.limit_ms
        }
        self.metrics.doubts(near, protected=seen.protection is Protection.COLO)

    def _publish(self) -> None:
        if self._look is None:
            return
        try:
            self.metrics.view(self._look())
        except Exception:
            log.exception("the pair was not published")

    async def run(self) -> None:
        """Publish the pair every second, over HTTP where the address can be had."""
        server: MetricsServer | None = None
        try:
            while True:
                self._publish()
                server = server or self._opened()
                await asyncio.sleep(PUBLISH_S)
        finally:
            if server is not None:
                server.close()

    def _opened(self) -> MetricsServer | None:
        try:
            server = MetricsServer(self.metrics, self._address)
        except ColoctlError as error:
            if error.message != self._complaint:
                log.error("%s It is tried again.", error.message)
            self._complaint = error.message
            return None
        log.info("metrics at http://%s/metrics", server.address)
        return server


@contextlib.asynccontextmanager
async def exporting(pair: str, address: str) -> AsyncIterator[Export]:
    """Serve metrics of ``pair`` at ``address`` inside the block."""
    export = Export(Metrics(pair), parse_address(address))
    running = asyncio.create_task(export.run())
    try:
        yield export
    finally:
        running.cancel()
        await asyncio.wait({running})
