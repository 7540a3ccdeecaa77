"""Lend a QEMU that runs as another user its folder and its disks, and take them back.

Called by `host.launch` before such a QEMU starts, by `host.local_files` and `supervisor.leftovers`
when its folder is swept or made private again, and by `host.holders` and `host.program` for the
user to look for; calls `wholefile`.

Example: the QEMU of node a runs as user 998. The folder ``a`` stays root's, has the group of 998
and is sticky: 998 makes files in it and can replace none of root's. The image becomes 998's, and
``owners-a.json`` beside the folder, root's alone, records whose it was.

Invariant: no file is given away that its new owner could have chosen: no folder on the way to it
can be written by that user, and no link at its end is followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from coloctl import paths, procfs, wholefile
from coloctl.errors import PreconditionFailed
from coloctl.model.launch import Account, Launch
from coloctl.regular import open_regular

#: The folder of a node: its group makes files in it, no user replaces another one's, and the group
#: is that of all that is made in it.
_LENT = stat.S_ISGID | stat.S_ISVTX | 0o770
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: As many links as the kernel follows on one way (path_resolution(7)).
_LINKS = 40
_RECORD_BYTES = 1 << 20


def record_of(folder: Path) -> Path:
    """Name the record of what was given to the user of the QEMU in ``folder``."""
    return folder.with_name(f"owners-{folder.name}.json")


def lend(folder: Path, program: Launch, account: Account) -> None:
    """Let ``account`` use the folder of its QEMU, and own the disks of ``program``.

    Raises `PreconditionFailed` where it cannot reach or read a file, or could put another one in
    its place. `take_back` undoes what was done until then.
    """
    try:
        _open_folder(folder, account)
        _resolve(folder, account)
        for path in program.reads:
            _require_readable(_resolve(path, account), account)
        _give(folder, program.owned, account)
    except OSError as error:
        raise PreconditionFailed(
            f"{account.name} cannot be given {error.filename or folder}: {error.strerror}."
        ) from None


def take_back(folder: Path) -> None:
    """Give each file that was lent to the QEMU in ``folder`` to its former owner.

    The QEMU has ended. A file that has another owner by now is left as it is.
    """
    if (known := _recorded(folder)) is not None:
        for path, uid in known["files"].items():
            with contextlib.suppress(OSError):
                fd = os.open(path, _FILE)
                try:
                    if os.fstat(fd).st_uid == known["uid"]:
                        os.fchown(fd, int(uid), -1)
                finally:
                    os.close(fd)
        with contextlib.suppress(OSError):
            record_of(folder).unlink()
    close(folder)


def take_all_back(folder: Path) -> None:
    """Take back what was lent to the QEMUs of the pair in ``folder``; both have ended."""
    for record in folder.glob(record_of(folder / "*").name):
        take_back(folder / record.stem.removeprefix("owners-"))


def close(folder: Path) -> None:
    """Make a folder that was lent private again; any other one is left as it is."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, _FOLDER)
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == _LENT:
                os.fchmod(fd, 0o700)
                os.fchown(fd, -1, os.getegid())
        finally:
            os.close(fd)


def readers(folder: Path) -> int:
    """Return the bits of a mode by which the user of a QEMU reads files made in ``folder``.

    None but for a folder that was made in the one of that QEMU.
    """
    status = folder.lstat()
    if status.st_mode & stat.S_ISGID and status.st_gid != os.getegid():
        folder.chmod(stat.S_ISGID | 0o750)
        return stat.S_IRGRP
    return 0


def user_of(folder: Path) -> int | None:
    """Return the user id of the QEMU in ``folder``; None where it is this process's own."""
    known = _recorded(folder)
    return None if known is None else int(known["uid"])


def recognize(sockets: Collection[Path]) -> None:
    """Count the users as which the QEMUs with these monitors were started as this process's own."""
    for folder in {path.parent for path in sockets}:
        if (user := user_of(folder)) is not None:
            procfs.also_ours(user)


def _recorded(folder: Path) -> dict[str, Any] | None:
    with (
        contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError),
        os.fdopen(open_regular(record_of(folder)), "rb") as file,
    ):
        if os.fstat(file.fileno()).st_uid == os.geteuid():
            known = json.loads(file.read(_RECORD_BYTES))
            files = {str(path): int(uid) for path, uid in known["files"].items()}
            return {"uid": int(known["uid"]), "files": files}
    return None


def _open_folder(folder: Path, account: Account) -> None:
    with _opened(folder, _FOLDER) as fd:
        _require_own(fd, folder)
        os.fchown(fd, -1, account.gid)
        os.fchmod(fd, _LENT)
        for entry in os.scandir(fd):
            if entry.is_dir(follow_symlinks=False):
                _let_read(fd, entry.name, account)
            elif entry.name == "console.log":
                _give_log(fd, entry.name, account)
    with _opened(folder.parent, _FOLDER) as fd:
        if os.fstat(fd).st_uid == os.geteuid() and not _passes(os.fstat(fd), account):
            os.fchown(fd, -1, account.gid)
            os.fchmod(fd, 0o710)
    if folder.parent.parent == paths.state_dir():
        with _opened(folder.parent.parent, _FOLDER) as fd:
            if not _passes(os.fstat(fd), account):
                os.fchmod(fd, 0o711)


def _let_read(within: int, name: str, account: Account) -> None:
    """Let the account read the files of a folder that this process made: credentials."""
    with _opened(Path(name), _FOLDER, within) as folder:
        if os.fstat(folder).st_uid != os.geteuid():
            return
        os.fchown(folder, -1, account.gid)
        os.fchmod(folder, stat.S_ISGID | 0o750)
        for entry in os.scandir(folder):
            with _opened(Path(entry.name), _FILE, folder) as file:
                os.fchown(file, -1, account.gid)
                os.fchmod(file, 0o640)


def _give_log(within: int, name: str, account: Account) -> None:
    """Let the account go on with a console that an earlier QEMU began."""
    with _opened(Path(name), _FILE, within) as file:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            os.fchown(file, account.uid, -1)


def _give(folder: Path, owned: tuple[Path, ...], account: Account) -> None:
    known = _recorded(folder) or {"files": {}}
    files: dict[str, int] = known["files"]
    with ExitStack() as stack:
        given = []
        for path in owned:
            real = _resolve(path, account, owned=True)
            fd = stack.enter_context(_opened(real, _FILE))
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                raise PreconditionFailed(f"{path} is neither a file nor a block device.")
            if status.st_uid != account.uid:
                files.setdefault(str(real), status.st_uid)
                given.append(fd)
        document = json.dumps({"uid": account.uid, "files": files})
        wholefile.replace(record_of(folder), document.encode(), mode=0o600)
        procfs.also_ours(account.uid)
        for fd in given:
            os.fchown(fd, account.uid, -1)


def _resolve(path: Path, account: Account, *, owned: bool = False) -> Path:
    """Follow ``path`` to its end as ``account`` would, and return that.

    Raises `PreconditionFailed` where it is not let through, and with ``owned`` where it could lead
    the way to another file.
    """
    here, rest, links = Path("/"), list(path.absolute().parts[1:]), 0
    while rest:
        name = rest.pop(0)
        if name == "..":
            here = here.parent
            continue
        folder, entry = here.lstat(), (here / name).lstat()
        if not _passes(folder, account):
            raise _unreachable(path, here, folder, account)
        if owned and _replaces(account, folder, entry, last=not rest):
            raise PreconditionFailed(
                f"{account.name} could put another file in place of {path}: it can write {here} "
                f"(mode {stat.S_IMODE(folder.st_mode):04o}).",
                hint=f"move the image to a folder that {account.name} cannot write",
            )
        if stat.S_ISLNK(entry.st_mode):
            links += 1
            if links > _LINKS:
                raise PreconditionFailed(f"{path} leads through too many links.")
            aim = (here / name).readlink()
            here = Path("/") if aim.is_absolute() else here
            rest = [*aim.parts[aim.is_absolute() :], *rest]
        else:
            here /= name
    return here


def _replaces(
    account: Account, folder: os.stat_result, entry: os.stat_result, *, last: bool
) -> bool:
    """Return whether the account could put something else in place of ``entry``."""
    mode = folder.st_mode
    writes = (
        folder.st_uid == account.uid
        or (folder.st_gid in account.all_groups and mode & stat.S_IWGRP)
        or mode & stat.S_IWOTH
    )
    held = mode & stat.S_ISVTX and account.uid not in (folder.st_uid, entry.st_uid)
    return bool(writes) and (last or not held)


def _passes(folder: os.stat_result, account: Account) -> bool:
    return bool(folder.st_mode & _bit(folder, account, stat.S_IXUSR))


def _bit(status: os.stat_result, account: Account, of_owner: int) -> int:
    """Return the bit of a mode that counts for the account, from that of the owner."""
    if status.st_uid == account.uid:
        return of_owner
    return of_owner >> (3 if status.st_gid in account.all_groups else 6)


def _require_readable(path: Path, account: Account) -> None:
    status = path.stat()
    if not status.st_mode & _bit(status, account, stat.S_IRUSR):
        raise PreconditionFailed(
            f"{account.name} cannot read {path} (mode {stat.S_IMODE(status.st_mode):04o}).",
            hint=f"`chmod o+r {path}`",
        )


def _require_own(fd: int, folder: Path) -> None:
    if (owner := os.fstat(fd).st_uid) != os.geteuid():
        raise PreconditionFailed(f"{folder} belongs to user id {owner}, not to you.")


def _unreachable(
    path: Path, folder: Path, status: os.stat_result, account: Account
) -> PreconditionFailed:
    return PreconditionFailed(
        f"{account.name} cannot reach {path}: {folder} (mode {stat.S_IMODE(status.st_mode):04o}).",
        hint=f"move it to a folder that others may pass, or `chmod o+x {folder}`",
    )


@contextlib.contextmanager
def _opened(path: Path, how: int, within: int | None = None) -> Iterator[int]:
    fd = os.open(path, how, dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)
