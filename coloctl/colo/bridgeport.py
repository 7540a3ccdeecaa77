"""Ask the host whether a tap's bridge port forwards frames; under STP it may not yet.

Called by `check.network` and `check.interfaces`, which warn of such a bridge, and by
`supervisor.acts.failover_book`: the failover's timeline names the guest's first frame only where it
got beyond the port. Asks through `host.base`. A port that comes up under STP listens and then
learns for the bridge's forward delay each, and drops every frame meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coloctl.errors import ColoctlError
from coloctl.host.base import Host

#: One look at one link, seconds.
LOOK_DEADLINE_S = 3.0

#: linux/if_bridge.h counts the forward delay in hundredths of a second, and so does iproute2.
TICKS_PER_S = 100.0


async def link(host: Host, name: str) -> Mapping[str, Any]:
    """Ask the host about one network device; empty where there is none, or no answer in 3 s."""
    try:
        done = await host.run(
            ["ip", "-j", "-d", "link", "show", "dev", name], deadline_s=LOOK_DEADLINE_S
        )
        listed = json.loads(done.stdout) if done.code == 0 else []
    except (ColoctlError, ValueError):
        return {}
    found = listed[0] if isinstance(listed, list) and listed else {}
    return found if isinstance(found, dict) else {}


def forwards(port: Mapping[str, Any]) -> bool:
    """Return whether a frame that comes out of this device goes anywhere; pure.

    A device that is no port of a bridge, or whose state is not described, counts as forwarding.
    """
    data = port.get("linkinfo", {})
    state = data.get("info_slave_data", {}).get("state") if isinstance(data, dict) else None
    return state is None or state == "forwarding"


def silent_s(bridge: Mapping[str, Any]) -> float:
    """Compute from a bridge's description how long a port that comes up drops every frame; pure.

    Seconds: twice the forward delay, 0.0 without STP.
    """
    data = bridge.get("linkinfo", {}).get("info_data", {})
    if not data.get("stp_state"):
        return 0.0
    return 2 * float(data.get("forward_delay", 0)) / TICKS_PER_S
