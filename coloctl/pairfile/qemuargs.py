"""Refuse QEMU options that ``guest.extra_args`` may not hold, with the reason for each.

Called by `pairfile.tables` for the value alone, and by `pairfile.checks` for the socket files that
two QEMUs would share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from coloctl.pairfile.values import complaint

_KEY = "coloctl sets it from a key of its own"
_MONITOR = "coloctl opens the monitors itself and must be the only one to command QEMU"
_PROCESS = "coloctl starts and watches the process itself"
_DISK = "a disk outside [[disk]] would not be replicated"
_NIC = "a network card outside [[nic]] would not be compared"
_END = "coloctl decides what follows when the guest resets, powers off or panics"
_EXIT = "QEMU would print something and exit"

#: option without its dash -> (why it is refused, the key to use instead)
REFUSED: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("qmp", "qmp-pretty", "mon", "monitor"), (_MONITOR, None)),
    **dict.fromkeys(("incoming", "S", "loadvm", "snapshot", "preconfig"), (_PROCESS, None)),
    **dict.fromkeys(
        ("daemonize", "pidfile", "chroot", "runas", "run-with", "sandbox"), (_PROCESS, None)
    ),
    **dict.fromkeys(("nographic", "readconfig", "writeconfig"), (_PROCESS, None)),
    **dict.fromkeys(("hda", "hdb", "hdc", "hdd", "fda", "fdb"), (_DISK, "disk")),
    **dict.fromkeys(("drive", "sd", "mtdblock", "pflash", "virtfs"), (_DISK, "disk")),
    **dict.fromkeys(("net", "nic", "netdev"), (_NIC, "nic")),
    **dict.fromkeys(("h", "help", "version"), (_EXIT, None)),
    **dict.fromkeys(("machine", "M"), (_KEY, "guest.machine")),
    **dict.fromkeys(("accel", "enable-kvm", "no-kvm"), (_KEY, "guest.accel")),
    **dict.fromkeys(("action", "no-reboot", "no-shutdown"), (_END, None)),
    "cpu": (_KEY, "guest.cpu"),
    "smp": (_KEY, "guest.cpus"),
    "m": (_KEY, "guest.memory"),
    "name": (_KEY, "name"),
    "kernel": (_KEY, "guest.kernel"),
    "initrd": (_KEY, "guest.initrd"),
    "append": (_KEY, "guest.append"),
}


#: How options name a socket file that QEMU listens at: ``-vnc unix:P``, ``-serial unix:P,server``,
#: ``-gdb unix:P,server=on``, ``-chardev socket,path=P,server=on``, ``-spice unix=on,addr=P``.
_LISTENING = (
    re.compile(r"^unix:(?P<path>[^,]+)"),
    re.compile(r"^socket,(?=.*\bserver\b)(?!.*\bserver=off\b).*\bpath=(?P<path>[^,]+)"),
    re.compile(r"^(?=.*\bunix=on\b).*\baddr=(?P<path>[^,]+)"),
)


def listening_sockets(args: Iterable[str]) -> list[str]:
    """Name the socket files that a QEMU with these arguments would listen at.

    Two QEMUs of one machine cannot share one: the second takes it from the first in silence.
    """
    found = []
    for word in args:
        for pattern in _LISTENING:
            if match := pattern.match(word):
                found.append(match["path"])
                break
    return found


def check_extra_args(args: tuple[str, ...]) -> tuple[str, ...]:
    """Check ``args`` and return them unchanged.

    Raises for the first word by which coloctl would not control QEMU any more.
    """
    for word in args:
        if "\0" in word or "\n" in word:
            raise complaint("A QEMU argument cannot hold a line break.", None)
        if not word.startswith("-"):
            continue
        option, _, glued = word.lstrip("-").partition(" ")
        if option in REFUSED:
            why, key = REFUSED[option]
            raise complaint(
                f"-{option} cannot be used here: {why}.", f"use {key}" if key else "remove it"
            )
        if glued:
            raise complaint(
                f'"{word}" holds an option and its value in one word.',
                f'write them as two items: "-{option}", "{glued}"',
            )
    return args
