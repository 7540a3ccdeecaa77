"""Find the account as which a QEMU is to run, on the machine where it runs.

Called by `host.local_files` as `Files.account`; the kernel's user namespace and the system's tables
of users and groups answer. Invariant: no account is returned that this process cannot become, or
whose group other users have: the folder of a QEMU is open to its group.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

from coloctl.errors import PreconditionFailed
from coloctl.model.launch import Account

KVM = Path("/dev/kvm")


def find(user: str) -> Account | None:
    """Return the account of that name or number; None where there is none that can be used.

    A number needs no entry in the table of users; its group has the same number. In a user
    namespace that does not map the account there is none. Raises `PreconditionFailed` for an
    account that shares its group.
    """
    entry = None
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    if entry is not None:
        name, uid, gid = entry.pw_name, entry.pw_uid, entry.pw_gid
    elif user.isdecimal():
        name, uid, gid = user, int(user), int(user)
    else:
        return None
    if not (_mapped("uid_map", uid) and _mapped("gid_map", gid)):
        return None
    if uid != 0 and (others := _sharing(gid, name, uid)):
        raise PreconditionFailed(
            f"The user {name} shares its group with {', '.join(sorted(others)[:3])}: they could "
            "write to the folder of its QEMU.",
            hint="name an account that has a group of its own, as `adduser --system --group` makes",
        )
    return Account(name, uid, gid, _kvm_groups())


def _mapped(table: str, number: int) -> bool:
    """Return whether this process's user namespace has that user or group."""
    try:
        lines = Path("/proc/self", table).read_text().splitlines()
    except OSError:
        return True
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= number < first + count for first, _, count in ranges)


def _sharing(gid: int, name: str, uid: int) -> set[str]:
    """Find the other users of a group."""
    found = {one.pw_name for one in pwd.getpwall() if one.pw_gid == gid and one.pw_uid != uid}
    with contextlib.suppress(KeyError):
        found |= set(grp.getgrgid(gid).gr_mem)
    return found - {name}


def _kvm_groups() -> tuple[int, ...]:
    """Return the group that may use KVM; nothing where no group but root's may."""
    with contextlib.suppress(OSError):
        status = os.stat(KVM)  # noqa: PTH116
        group = status.st_mode & (stat.S_IRGRP | stat.S_IWGRP)
        if group == stat.S_IRGRP | stat.S_IWGRP and status.st_gid != 0:
            return (status.st_gid,)
    return ()
