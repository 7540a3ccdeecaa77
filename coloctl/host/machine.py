"""Describe this machine: what it is, and where this user's coloctl keeps files on it.

Called by `host.local` as `Host.machine`; reads `procfs` and `paths`. Invariant: two processes of
one user on one machine describe it alike, unless their environments name other folders.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from pathlib import Path

from coloctl import __version__, paths
from coloctl.host.identity import pid_namespace
from coloctl.host.records import Machine
from coloctl.procfs import boot_id, machine_id

#: The options of a Python that runs a module of coloctl and takes none from its working folder.
RUN_MODULE = ("-P", "-m")


def this_machine() -> Machine:
    """Describe this machine; raises `PreconditionFailed` for a folder that others can change."""
    return Machine(
        name=socket.gethostname(),
        machine_id=machine_id(),
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        euid=os.geteuid(),
        python=platform.python_version(),
        version=__version__,
        state_dir=paths.state_dir(),
        cache_dir=paths.cache_dir(),
        registry_dir=paths.registry_dir(),
        overlay_dir=paths.overlay_dir(),
        programs=(sys.executable, *RUN_MODULE),
        installed=__version__,
        network=str(Path("/proc/self/ns/net").stat().st_ino),
    )
