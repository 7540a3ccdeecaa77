"""Report what systemd on a machine does for a QEMU, or to one when a login ends.

Called by `check.machine_there`; asks logind through ``busctl`` on the host.

Rules: root's QEMUs get units of systemd (`host.systemd`) where D-Bus is there to ask for them. With
``KillUserProcesses=yes`` logind ends what any other user leaves when the last login of that user
ends. So a QEMU that an agent has started would end with its ssh connection, unless the user lingers
(``loginctl enable-linger``).
"""

from __future__ import annotations

import os
from pathlib import Path

from coloctl.check.finding import Precondition, Severity
from coloctl.host.base import Host
from coloctl.host.systemd import BOOTED

NAME = "systemd"
LINGER = Path("/var/lib/systemd/linger")
ASK = (
    "busctl", "--system", "--timeout=5", "get-property", "org.freedesktop.login1",
    "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "KillUserProcesses",
)  # fmt: skip
_COMMAND_DEADLINE_S = 10.0


async def examine_logins(host: Host) -> list[Precondition]:
    """Report units for root's QEMUs, and logins whose end would end a QEMU."""
    name = host.machine.name
    if await host.usable(BOOTED, os.F_OK):
        sentence = f"systemd does not run on {name}: a QEMU gets no unit of its own."
        return [Precondition(NAME, Severity.INFO, sentence)]
    bus = await host.which(ASK[0])
    if host.machine.euid == 0:
        if bus is None or await host.usable(Path("/run/dbus/system_bus_socket"), os.F_OK):
            sentence = f"systemd on {name} cannot be asked for units: there is no D-Bus."
            return [Precondition(NAME, Severity.WARNING, sentence, "`apt-get install dbus` there")]
        return [Precondition(NAME, Severity.OK, f"Each QEMU gets a unit of systemd on {name}.")]
    if bus is None:
        return []
    answer = await host.run(ASK, deadline_s=_COMMAND_DEADLINE_S)
    user = (await host.run(["id", "-un"], deadline_s=_COMMAND_DEADLINE_S)).stdout.strip()
    if answer.stdout.strip() != "b true" or not await host.usable(LINGER / user, os.F_OK):
        sentence = f"A QEMU of {user} outlives the login on {name}."
        return [Precondition(NAME, Severity.OK, sentence)]
    sentence = f"logind on {name} ends what {user} leaves at logout: a QEMU ends with the ssh."
    return [
        Precondition(NAME, Severity.WARNING, sentence, f"`loginctl enable-linger {user}` there")
    ]
