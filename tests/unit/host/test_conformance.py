"""The promises of `Host`, kept by this machine and by one at the end of a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.conformance import *  # noqa: F403  # every test of it is one of this module
from support.dials import AGENT

from coloctl.host import LocalHost
from coloctl.host.access import Access, Taps
from coloctl.host.agent.work import OPERATIONS
from coloctl.host.base import Host
from coloctl.host.files import Files
from coloctl.host.remote.host import RemoteHost

pytestmark = pytest.mark.unit


#: What a client knows by itself; a process that is only known is adopted later.
OF_THE_CLIENT = {"name", "machine", "reach", "ready", "reached", "known", "aclose"}
#: Operations on what an earlier one has made.
ON_HOLDS = {"answers", "end", "halt", "accept", "send", "receive", "digests"}


@pytest.fixture(scope="module", params=["local", "remote"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """One host of each kind for all tests, as a supervisor has it: no test may leave it changed."""
    host: Host = LocalHost()
    if request.param == "remote":
        host = RemoteHost("ssh://hv2", AGENT)
    try:
        yield host
    finally:
        await host.aclose()


def test_each_method_of_a_host_has_its_operation() -> None:
    methods = {
        name
        for part in (Host, Files, Access, Taps)
        for name in vars(part)
        if not name.startswith("_")
    }
    assert set(OPERATIONS) == methods - OF_THE_CLIENT | ON_HOLDS
