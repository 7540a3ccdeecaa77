"""Start a QEMU without a machine, query it, and end it with all that it started.

Called by `vm` for the spellings of a binary, by `check.probe`, by `colo.cpu_models`, and by
`colo.digests` to show images; `host.base` starts it and `qmp.session` queries it. Invariant: no
process of it is left, also where the binary is a wrapper that starts QEMU as another process.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from coloctl.errors import LaunchError, MonitorError, UnsupportedQEMU
from coloctl.host.base import Host
from coloctl.model.launch import Launch
from coloctl.qmp.session import Session

#: A QEMU that has bound its monitors answers within milliseconds; loading its libraries from a
#: cold disk on a busy machine was seen to take seconds.
LAUNCH_DEADLINE_S = 30.0


@contextlib.asynccontextmanager
async def asked(path: Path, host: Host, *, accel: str = "") -> AsyncIterator[Session]:
    """Start a QEMU without a machine that answers queries, and kill it on every way out.

    ``accel`` is what a question about processors is for; "" leaves the choice to QEMU.

    Raises `UnsupportedQEMU` where the binary does not start or does not answer as QEMU.
    """
    there = host.machine.name
    another = f"name a qemu-system-x86_64 that runs on {there}"
    async with host.workspace("coloctl-ask-") as folder:
        socket_path, log = folder / "qmp.sock", folder / "qemu.log"
        argv = (
            str(path), "-machine", "none", "-nodefaults", "-display", "none",
            "-chardev", "socket,id=qmp0,fd={fd:qmp},server=on,wait=off",
            "-qmp", "chardev:qmp0", *(("-accel", accel) if accel else ()),
        )  # fmt: skip
        try:
            process = await host.launch(Launch(argv, {"qmp": socket_path}), stderr=log)
        except LaunchError as error:
            raise UnsupportedQEMU(error.message, hint=another) from error
        try:
            sock = await host.monitor(socket_path, LAUNCH_DEADLINE_S)
            session = await Session.open(
                sock,
                name=path.name,
                oob=False,
                deadline_s=LAUNCH_DEADLINE_S,
                on_event=lambda _: None,
            )
            try:
                yield session
            finally:
                await session.aclose()
        except MonitorError as error:
            last = await host.read_tail(log, 3)
            raise UnsupportedQEMU(
                f"{path} on {there} does not answer as QEMU: {last or error.message}",
                hint=another,
            ) from error
        finally:
            await process.kill(LAUNCH_DEADLINE_S)
