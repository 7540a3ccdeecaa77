"""Find out which spellings a binary speaks, by asking a QEMU that was started for that.

Called by `vm` and `check.probe`; the result is a `model.dialect` value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from coloctl.clock import Deadline
from coloctl.errors import CommandRefused
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.qmp import command as qmp
from coloctl.qmp.command import Command
from coloctl.qmp.schema import Schema, distill

_SWITCHOVER_BANDWIDTH = "migrate-set-parameters.avail-switchover-bandwidth"
_RECONNECT = "chardev-add.backend[type=socket].data.reconnect"

#: A Linux or Windows guest reports through it to QEMU that it has panicked.
PVPANIC = "pvpanic-pci"


class Asked(Protocol):
    """An object that answers commands: a `Session`, or a `Monitor`."""

    async def execute(self, command: Command, deadline_s: float) -> Any:
        """Send the command and return the answer."""
        ...


def version_text(answer: Mapping[str, Any]) -> str:
    """Format the answer of ``query-version`` for people: ``10.0.13 (Debian 1:10.0.13+ds-0)``."""
    numbers = answer["qemu"]
    version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
    package = str(answer.get("package", "")).strip()
    return f"{version} ({package})" if package else version


async def learn_schema(asked: Asked, deadline_s: float = 5.0) -> Schema:
    """Query the schema of the QEMU that answers, and distill it."""
    deadline = Deadline(deadline_s)
    version = version_text(await asked.execute(qmp.query_version(), deadline.remaining()))
    return distill(await asked.execute(qmp.query_qmp_schema(), deadline.remaining()), version)


async def discover(
    asked: Asked, deadline_s: float = 5.0, *, schema: Schema | None = None
) -> Dialect:
    """Find the dialect of the QEMU that answers; its migration capabilities are restored
    afterwards.

    Meant for a QEMU with ``-machine none`` that runs for this alone: capabilities are switched on
    and off again on the way. ``schema`` saves one query.
    """
    deadline = Deadline(deadline_s)
    if schema is None:
        schema = await learn_schema(asked, deadline.remaining())
    return_path = await _return_path(asked, deadline)
    return Dialect(
        version=schema.qemu,
        return_path=return_path or ReturnPath.FORBIDDEN,
        reconnect="reconnect-ms" if schema.has(f"{_RECONNECT}-ms") else "reconnect",
        x_colo=return_path is not None,
        switchover_bandwidth=schema.has(_SWITCHOVER_BANDWIDTH),
        pvpanic=await _has_device(asked, PVPANIC, deadline),
    )


async def _has_device(asked: Asked, name: str, deadline: Deadline) -> bool:
    try:
        await asked.execute(qmp.qom_list_properties(name), deadline.remaining())
    except CommandRefused:
        return False
    return True


async def _return_path(asked: Asked, deadline: Deadline) -> ReturnPath | None:
    """Find how ``x-colo`` and ``return-path`` go together; None when there is no ``x-colo``.

    Where QEMU takes ``x-colo`` alone it is older than 161e603975 (11.0), and its COLO breaks with a
    return path although QEMU accepts the two together.
    """
    listed = await asked.execute(qmp.query_migrate_capabilities(), deadline.remaining())
    before = {line["capability"]: line["state"] for line in listed}
    if "x-colo" not in before:
        return None
    alone = (("return-path", False), ("x-colo", True))
    together = (("return-path", True), ("x-colo", True))
    try:
        if await _accepts(asked, alone, deadline):
            return ReturnPath.FORBIDDEN
        return ReturnPath.REQUIRED if await _accepts(asked, together, deadline) else None
    finally:
        restored = [(name, before[name]) for name in ("x-colo", "return-path")]
        await asked.execute(qmp.migrate_set_capabilities(restored), deadline.remaining())


async def _accepts(
    asked: Asked, capabilities: Sequence[tuple[str, bool]], deadline: Deadline
) -> bool:
    try:
        await asked.execute(qmp.migrate_set_capabilities(capabilities), deadline.remaining())
    except CommandRefused:
        return False
    return True
