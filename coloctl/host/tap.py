"""Switch and test taps by ioctl: fast enough to be a network fence, without a netlink library.

Called by `host.local`, `host.launch` and `host.maketap`; `host.packet` and `host.resource_use`
share its names. A socket belongs for ever to the namespace in which it was made, so one that is
kept open answers for that namespace from any thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from coloctl.errors import PreconditionFailed

# Numbers from linux/sockios.h, linux/if.h, linux/if_tun.h and linux/ethtool.h.
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO = 0x3
DRVINFO_SIZE = 196
IFF_UP = 0x1
IFNAMSIZ = 16
TUNSETIFF = 0x400454CA
IFF_TAP = 0x2
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_NODE = "/dev/net/tun"


def _name(name: str) -> bytes:
    raw = os.fsencode(name)
    if not 0 < len(raw) < IFNAMSIZ:
        raise PreconditionFailed(
            f"{name!r} cannot be a network device: a name has 1 to {IFNAMSIZ - 1} bytes."
        )
    return raw


def set_up(control: socket.socket, name: str, up: bool, host: str) -> None:
    """Set the device's administrative state to ``up``, in the namespace of ``control``.

    Raises `PreconditionFailed` when there is no such device or the right is missing.
    """
    raw = _name(name)
    try:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh22x", raw, 0))
        flags = struct.unpack_from("H", answer, IFNAMSIZ)[0]
        wanted = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", raw, wanted))
    except OSError as error:
        raise _refused(error, name, host) from None


def _refused(error: OSError, name: str, host: str) -> PreconditionFailed:
    if error.errno == errno.ENODEV:
        return missing(name, host)
    if error.errno in (errno.EPERM, errno.EACCES):
        return PreconditionFailed(
            f"No right to change {name} on {host}.", hint="run as root, or with CAP_NET_ADMIN"
        )
    return PreconditionFailed(f"Cannot change {name} on {host}: {error.strerror}.")


def is_up(control: socket.socket, name: str) -> bool | None:
    """Return the device's administrative state; None where there is no such device.

    Raises `PreconditionFailed` for what cannot be the name of a device.
    """
    try:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh22x", _name(name), 0))
    except OSError:
        return None
    return bool(struct.unpack_from("H", answer, IFNAMSIZ)[0] & IFF_UP)


def missing(name: str, host: str) -> PreconditionFailed:
    """Return the error for a tap that does not exist."""
    return PreconditionFailed(
        f"There is no tap {name} on {host}.",
        hint='`bridge = "br0"` alone under [[nic]] lets coloctl make the tap; or make it with '
        f"`ip tuntap add {name} mode tap vnet_hdr`, and those of the lab with `coloctl lab up`",
    )


def _driver(control: socket.socket, name: str) -> tuple[str, str] | None:
    """Return driver and bus of a device, as ethtool reports them; None where there is no such
    device.
    """
    info = bytearray(struct.pack("I", ETHTOOL_GDRVINFO).ljust(DRVINFO_SIZE, b"\0"))
    address = _address_of(info)
    try:
        fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", _name(name), address))
    except OSError as error:
        return None if error.errno == errno.ENODEV else ("", "")
    return _text(info[4:36]), _text(info[100:132])


def _address_of(buffer: bytearray) -> int:
    import ctypes  # only here: the ioctl wants a pointer inside its argument

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _text(field: bytes | bytearray) -> str:
    return bytes(field).split(b"\0", 1)[0].decode(errors="replace")


def held(control: socket.socket, name: str) -> bool:
    """Return whether another process has the tap open; the calling thread must be in its namespace.

    The tap is held for an instant. Where there is no such tap, no process has it. Where it may not
    be opened, it counts as held.
    """
    if _driver(control, name) != ("tun", "tap"):
        return False
    try:
        _attach(name)
    except OSError as error:
        return error.errno in (errno.EBUSY, errno.EPERM)
    except PreconditionFailed:  # the device node may not be opened
        return True
    return False


def check(control: socket.socket, name: str, host: str) -> None:
    """Check that a QEMU could open the tap now; the calling thread must be in the tap's namespace.

    Raises `PreconditionFailed` with what is wrong. The tap is held for an instant.
    """
    driver = _driver(control, name)
    if driver is None:
        raise missing(name, host)
    if driver != ("tun", "tap"):
        raise PreconditionFailed(
            f"{name} on {host} is not a tap.", hint="`tap` in [[nic]] must name a tap device"
        )
    try:
        _attach(name)
    except OSError as error:
        raise _not_attachable(error, name, host) from None


def attach(name: str, *, vnet_header: bool) -> int:
    """Open the existing tap for a QEMU, whose command line names the descriptor.

    The calling thread must be in the tap's namespace. Raises `PreconditionFailed`.
    """
    try:
        return opened(name, IFF_VNET_HDR if vnet_header else 0)
    except OSError as error:
        raise _not_attachable(error, name, "this machine") from None


def _attach(name: str) -> None:
    """Open the existing tap as a QEMU would, and close it again."""
    os.close(opened(name, IFF_VNET_HDR))


def opened(name: str, flags: int) -> int:
    """Open a tap with those flags of TUNSETIFF; one that is not there is made until it is closed.

    Raises `OSError`, and `PreconditionFailed` where the device node does not open.
    """
    node = _open_node()
    try:
        request = struct.pack("16sH22x", _name(name), IFF_TAP | IFF_NO_PI | flags)
        fcntl.ioctl(node, TUNSETIFF, request)
    except BaseException:
        os.close(node)
        raise
    return node


def _open_node() -> int:
    try:
        return os.open(TUN_NODE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = f"give this user read and write access to {TUN_NODE} (`ls -l {TUN_NODE}`)"
        else:
            hint = "load the module with `modprobe tun`; a container must be given the device"
        raise PreconditionFailed(f"Cannot open {TUN_NODE}: {error.strerror}.", hint=hint) from None


def _not_attachable(error: OSError, name: str, host: str) -> PreconditionFailed:
    if error.errno == errno.EBUSY:
        return PreconditionFailed(
            f"The tap {name} on {host} is in use by another process.",
            hint="an older QEMU may still run; find it with"
            f" `grep -l 'iff:.*{name}$' /proc/[0-9]*/fdinfo/*`",
        )
    if error.errno == errno.EPERM:
        return PreconditionFailed(
            f"No right to open the tap {name} on {host}.",
            hint="run as root, or make the tap with `user` set to the user that runs coloctl",
        )
    if error.errno == errno.EINVAL:
        return PreconditionFailed(
            f"The tap {name} on {host} was made for several queues, and COLO uses one.",
            hint="make it again without `multi_queue`",
        )
    return PreconditionFailed(f"Cannot open the tap {name} on {host}: {error.strerror}.")
