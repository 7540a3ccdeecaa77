"""Build the QMP sequences that give a running QEMU a new certificate; pure (`colo.plan`).

Called by `colo.tls`; the objects are those of `machine.tls`, the commands those of `qmp.command`.

Invariant: the old objects go last, when no filter of the primary has been made with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coloctl.colo.plan import GONE, Plan
from coloctl.machine import tls as encryption
from coloctl.model.tls import TlsWire
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import Step


def add(tls: TlsWire, missing: Collection[str]) -> Plan:
    """Make those TLS objects that are ``missing`` in this QEMU; it reads the files now."""
    made = [qmp.object_add(one) for one in encryption.objects(tls) if one["id"] in missing]
    why = "a certificate that is new to this QEMU"
    return tuple(Step(one, why="" if n else why) for n, one in enumerate(made))


def remove(ids: Iterable[str]) -> Plan:
    """Remove TLS objects; a connection that was made with one keeps what it has of it."""
    return tuple(Step(qmp.object_del(one), tolerate=GONE) for one in ids)
