"""Choose where coloctl keeps its files: state of a boot, lasting files, caches, keys.

Used by every layer. Invariant: a folder that another user made, can write, or can replace is never
returned, but refused. Its content names processes that are killed, files that are written and
programs that are run.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path

from coloctl.errors import PreconditionFailed

#: Linux `sockaddr_un.sun_path` holds 108 bytes with its closing NUL (unix(7)).
UNIX_PATH_MAX = 107


#: The variables that name another place, for hints.
_STATE, _CACHE, REGISTRY = "COLOCTL_STATE_DIR", "COLOCTL_CACHE_DIR", "COLOCTL_REGISTRY_DIR"
CONFIG = "COLOCTL_CONFIG_DIR"


def state_dir() -> Path:
    """Name the folder with one folder per pair: sockets, journal, stderr of both QEMUs.

    Raises `PreconditionFailed` for one that others can change, or a folder above it.
    """
    folder = _state_dir()
    require_own(folder)
    for above in _resolved(folder).parents:
        _require_trusted(above, folder)
    return folder


def _state_dir() -> Path:
    if chosen := os.environ.get(_STATE):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/run/coloctl")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "coloctl"
    return Path(f"/tmp/coloctl-{os.geteuid()}")


def pair_dir(pair: str) -> Path:
    """Name the folder of one pair, made by its supervisor with mode 0700; raises as `state_dir`."""
    return require_own(state_dir() / pair, links=False)


def control_socket(pair: str) -> Path:
    """Return the path of the supervisor's control socket; while it answers, the pair is served."""
    return pair_dir(pair) / "control.sock"


def cache_dir() -> Path:
    """Name the folder for downloads and what is built from them; safe to delete.

    Raises `PreconditionFailed` for one that others can change: programs in it are run.
    """
    return require_own(_cache_dir(), variable=_CACHE)


def _cache_dir() -> Path:
    if chosen := os.environ.get(_CACHE):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/coloctl")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coloctl"


def registry_dir() -> Path:
    """Name the folder with what is known of each disk of this machine; no reboot may remove it.

    Raises `PreconditionFailed` for one that others can change: it shows which disks are newest.
    """
    return require_own(_registry_dir(), variable=REGISTRY)


def _registry_dir() -> Path:
    if chosen := os.environ.get(REGISTRY):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/coloctl/disks")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "coloctl" / "disks"


def overlay_dir() -> Path:
    """Return the folder for overlays of block devices, which have no folder; as lasting."""
    return registry_dir().with_name("overlays")


def given_up_dir() -> Path:
    """Return the folder of the lists of what was given up with its machine; as lasting."""
    return registry_dir().with_name("given-up")


def config_dir() -> Path:
    """Name the folder of certificates and keys; written by an operator, kept by a reboot.

    Raises `PreconditionFailed` for one that others can change.
    """
    return require_own(_config_dir(), variable=CONFIG)


def _config_dir() -> Path:
    if chosen := os.environ.get(CONFIG):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/etc/coloctl")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "coloctl"


def data_dir(name: str) -> Path:
    """Return a folder of files that are installed with coloctl: qmp_schemas or scenarios."""
    return Path(__file__).parent / "data" / name


def make_private(folder: Path, *, variable: str = _STATE) -> Path:
    """Make ``folder`` with mode 0700 where it is missing, and so each missing folder above it.

    Raises as `require_own`, and `PreconditionFailed` for what cannot be made; ``variable`` names
    another place.
    """
    require_own(folder, variable=variable)
    try:
        for above in reversed(folder.parents):
            if not above.exists():
                above.mkdir(mode=0o700, exist_ok=True)  # parents=True would let others read it
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PreconditionFailed(
            f"{folder} cannot be made: {error.strerror}.",
            hint=f"check what is in its way, or set {variable} to a folder of your own",
        ) from None
    return require_own(folder, variable=variable)


def require_own(folder: Path, *, variable: str = _STATE, links: bool = True) -> Path:
    """Refuse a ``folder`` that another user made or can write; one that is not there is fine.

    A symbolic link is followed where root or this user made it; without ``links`` none is. Raises
    `PreconditionFailed` naming the owner or the mode; ``variable`` names another place.
    """
    elsewhere = f"set {variable} to a folder of your own"
    try:
        status = folder.lstat()
        if stat.S_ISLNK(status.st_mode):
            if not links or status.st_uid not in _trusted():
                whose = f"a symbolic link of user id {status.st_uid}"
                raise PreconditionFailed(
                    f"{folder} is {whose}, and not a folder.",
                    hint=f"remove it after a look at where it leads, or {elsewhere}",
                )
            status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return folder
    except OSError as error:
        raise PreconditionFailed(
            f"{folder} cannot be looked at: {error.strerror}.", hint=elsewhere
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        return folder  # it holds nothing that could be trusted; making the folder will fail
    if status.st_uid not in _owners():
        raise PreconditionFailed(
            f"{folder} belongs to user id {status.st_uid}, not to you.",
            hint=f"{elsewhere}, or run coloctl as that user",
        )
    if _written_by_others(status):
        raise PreconditionFailed(
            f"{folder} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            hint=f"look at what is in it, then `chmod go-w {folder}`; or {elsewhere}",
        )
    return folder


def _written_by_others(status: os.stat_result) -> bool:
    """Return whether others may write.

    A user's private group, which has the user's number, does not count as others.
    """
    group = status.st_mode & stat.S_IWGRP and status.st_gid != status.st_uid
    return bool(group or status.st_mode & stat.S_IWOTH)


def _require_trusted(above: Path, folder: Path) -> None:
    """Refuse a folder ``above`` of ``folder`` in which others can put another one in its place."""
    try:
        status = above.stat()
    except OSError:  # what is not there cannot be changed, and what is hidden is not used
        return
    sticky = status.st_mode & stat.S_ISVTX
    if status.st_uid in _trusted() and (sticky or not status.st_mode & stat.S_IWOTH):
        return
    raise PreconditionFailed(
        f"{folder} can be replaced by others: {above} above it belongs to user id "
        f"{status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}.",
        hint=f"set {_STATE} to a folder below those of root and your own alone",
    )


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # a loop of links leads nowhere
        return folder


def _trusted() -> frozenset[int]:
    """Return the users that can do anything here anyway: root and this one.

    Seen from a private user namespace, root is the user that stands for all who are not in it.
    """
    return frozenset({0, *_owners(), *_outsiders()})


def _owners() -> frozenset[int]:
    """Return this user, and for root the user who became root by sudo and may name any program.

    CI restores its cache as its own user and runs coloctl by sudo.
    """
    before = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return frozenset({os.geteuid(), *([int(before)] if before.isdecimal() else [])})


@cache
def _outsiders() -> tuple[int, ...]:
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
            return ()
        return (int(Path("/proc/sys/kernel/overflowuid").read_text()),)
    except (OSError, ValueError):
        return ()


def check_socket_path(path: Path) -> Path:
    """Return ``path``, which can be a unix socket address; raises `PreconditionFailed` else."""
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise PreconditionFailed(
            f"The socket path {path} has {len(os.fsencode(path))} bytes; a unix socket address "
            f"can have {UNIX_PATH_MAX}.",
            hint="set COLOCTL_STATE_DIR to a shorter path, or give the pair a shorter name",
        )
    return path
