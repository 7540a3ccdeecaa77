"""Hold the process that a record names, or prove that it has ended.

Called by `host.recorded_program` for the QEMUs of a pair, by `host.process_tree` and by
`host.agent.place`. Invariant: only a process with the recorded start time is held, and a case of
doubt is an error, never a death.
"""

from __future__ import annotations

import os

from coloctl.errors import PreconditionFailed
from coloctl.host.identity import Identity, pid_namespace
from coloctl.host.process import LocalProcess, command_line, identity_of, is_readable
from coloctl.procfs import boot_id, machine_id


def adopt(identity: Identity, *, node: str = "") -> LocalProcess | None:
    """Hold the process of ``identity``; None: it has ended (a zombie has), or its pid was reused.

    None is a proof of death: no process of an earlier boot lives. A case of doubt raises
    `PreconditionFailed`: a number of another machine or pid namespace, or a process whose user or
    program is not the recorded one.
    """
    if identity.pid <= 0:
        return None
    # The machine comes first: another machine has another boot, which proves nothing here.
    if identity.machine and identity.machine != machine_id():
        raise PreconditionFailed(
            f"Process {identity.pid} was recorded on another machine (its id is"
            f" {identity.machine}, this one's {machine_id() or 'unknown'}).",
            hint="run coloctl on the machine that started the pair; where that is gone for good,"
            f" `coloctl stop PAIR --force --without {node or 'NODE'}` gives the process up",
        )
    if identity.boot and identity.boot != boot_id():
        return None
    if identity.namespace and identity.namespace != pid_namespace():
        raise PreconditionFailed(
            f"Process {identity.pid} was recorded in another pid namespace ({identity.namespace}).",
            hint="run coloctl in the container that started the pair; where that is gone, so is"
            " the process: remove the pair's state folder",
        )
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise PreconditionFailed(
            f"Process {identity.pid} cannot be held: {error.strerror}."
        ) from None
    # Only now is the start time worth comparing: from here on the pidfd cannot change its process.
    found = identity_of(identity.pid)
    if found is None and not is_readable(pidfd):
        os.close(pidfd)
        raise _hidden(identity.pid)
    if found != identity or is_readable(pidfd):
        os.close(pidfd)
        return None
    if strange := identity.differs(found):
        os.close(pidfd)
        raise PreconditionFailed(
            f"Process {identity.pid} has the number of the QEMU of node {node}, but {strange}.",
            hint=f"look at it with `ps -fp {identity.pid}`; it is neither adopted nor ended",
        )
    argv = command_line(identity.pid)
    return LocalProcess(identity, pidfd, argv, node=node, launched=False)


def _hidden(pid: int) -> PreconditionFailed:
    return PreconditionFailed(
        f"Process {pid} exists, but /proc does not show whether it is the one that was started.",
        hint="run coloctl as the user that started the pair (/proc is mounted with hidepid)",
    )
