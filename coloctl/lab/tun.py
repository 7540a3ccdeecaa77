"""Make the device node that taps need.

Called by `lab.network` before a lab is built.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from coloctl.errors import LabError

NODE = Path("/dev/net/tun")
_DEVICE = os.makedev(10, 200)  # linux/miscdevice.h: misc devices are major 10, TUN_MINOR is 200


def ensure_node() -> None:
    """Ensure that `NODE` can be opened; raises `LabError` with a hint otherwise.

    As root it is made where it is missing.
    """
    if not NODE.exists():
        _make_node()
    try:
        os.close(os.open(NODE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise LabError(
            f"{NODE} cannot be opened by this user, so there can be no taps.",
            hint=f"`chmod 666 {NODE}` as root: that is how Debian ships it",
        ) from None
    except OSError as error:
        raise LabError(
            f"{NODE} does not work: {error.strerror}.",
            hint="load the module with `modprobe tun`; a container needs it from its host",
        ) from None


def _make_node() -> None:
    try:
        NODE.parent.mkdir(exist_ok=True)
        os.mknod(NODE, stat.S_IFCHR | 0o666, _DEVICE)
        NODE.chmod(0o666)
    except FileExistsError:
        return
    except OSError as error:
        raise LabError(
            f"{NODE} is missing and cannot be made here: {error.strerror}.",
            hint="load the module with `modprobe tun`, or give the container that device",
        ) from None
