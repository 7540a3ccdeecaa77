"""Where coloctl keeps what: state that a reboot may forget, what no reboot may, and caches."""

from __future__ import annotations

import os
from pathlib import Path

from coloctl.errors import PreconditionFailed

#: Linux `sockaddr_un.sun_path` holds 108 bytes with its closing NUL (unix(7)).
UNIX_PATH_MAX = 107


def state_dir() -> Path:
    """The folder with one folder per pair: sockets, journal, stderr of both QEMUs."""
    if chosen := os.environ.get("COLOCTL_STATE_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/run/coloctl")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "coloctl"
    return Path(f"/tmp/coloctl-{os.geteuid()}")


def pair_dir(pair: str) -> Path:
    """The folder of one pair, made by its supervisor with mode 0700."""
    return state_dir() / pair


def control_socket(pair: str) -> Path:
    """The control socket of the pair's supervisor; as long as it answers, the pair is served."""
    return pair_dir(pair) / "control.sock"


def cache_dir() -> Path:
    """The folder for downloads and what is built from them; safe to delete."""
    if chosen := os.environ.get("COLOCTL_CACHE_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/coloctl")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coloctl"


def registry_dir() -> Path:
    """The folder with what is known of each disk of this machine; a reboot may not sweep it."""
    if chosen := os.environ.get("COLOCTL_REGISTRY_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/coloctl/disks")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "coloctl" / "disks"


def make_private(folder: Path) -> Path:
    """``folder`` exists with mode 0700 and is ours; raises `PreconditionFailed` otherwise."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise PreconditionFailed(
            f"{folder} belongs to user id {owner}, not to you.",
            hint="set COLOCTL_STATE_DIR to a folder of your own",
        )
    return folder


def check_socket_path(path: Path) -> Path:
    """``path`` can be a unix socket address; raises `PreconditionFailed` when it is too long."""
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise PreconditionFailed(
            f"{path} is longer than the {UNIX_PATH_MAX} bytes a unix socket address can have.",
            hint="set COLOCTL_STATE_DIR to a shorter path",
        )
    return path
