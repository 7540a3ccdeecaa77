"""Provide Debian packages that this machine is without, in a folder, and install none of them.

Called by `lab.sshd` for OpenSSH and by `lab.machine_store` for all that machines have; calls
`lab.apt` to resolve, fetch and unpack.

A layer holds the named packages and those that they need, less all that is installed already. Its
programs so run with the libraries of this machine and of the layer together.
Invariant: a layer appears whole or not at all, and is never changed afterwards.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from coloctl.errors import ProvisionError
from coloctl.lab import apt
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Report, silent
from coloctl.paths import cache_dir

#: Relative to a layer. Debian 12 still has libraries outside /usr.
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")

_OS_RELEASE = Path("/etc/os-release")


def provide(packages: Sequence[str], *, report: Report = silent) -> Path:
    """Return the folder of the layer with those packages; it is fetched where it is missing.

    It is empty where all of them are installed. Raises `ProvisionError` when this machine is no
    Debian, or when no mirror serves them.
    """
    suite, installed = own_suite(), _installed()
    key = "\n".join((suite, *sorted(packages), "", *sorted(installed)))
    home = cache_dir().absolute() / "layers" / hashlib.sha256(key.encode()).hexdigest()[:12]
    if home.is_dir():
        return home
    with exclusive(home.with_suffix(".lock"), f"packages of Debian {suite}", report):
        if home.is_dir():
            return home
        debs = apt.fetch(suite, packages, report=report)
        missing = [deb for deb in debs if deb.name.split("_")[0] not in installed]
        apt.unpack(missing, home, report=report)
        apt.discard(debs)
    return home


def libraries(layer: Path) -> list[Path]:
    """Return the folders of ``layer`` in which libraries lie."""
    return [layer / where for where in LIBRARIES if (layer / where).is_dir()]


def own_suite() -> str:
    """Return the suite of Debian that this machine runs; raises `ProvisionError` elsewhere."""
    try:
        lines = _OS_RELEASE.read_text().splitlines()
    except OSError:
        lines = []
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    suite = values.get("VERSION_CODENAME", "").strip('"')
    if not apt.DEBIAN_SUITE.fullmatch(suite):
        raise ProvisionError(
            "Packages for this machine's system can be fetched on Debian only.",
            hint="apt-get install openssh-server",
        )
    return suite


def _installed() -> frozenset[str]:
    """Return the names of the packages that are installed; raises `ProvisionError`."""
    command = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ProvisionError(
            f"The installed packages cannot be listed by dpkg-query: {error}."
        ) from None
    rows = (line.split(" ", 1) for line in done.stdout.splitlines())
    return frozenset(name for status, name in rows if status == "installed")
