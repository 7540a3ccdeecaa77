"""Run the commands that build the root filesystem of a Debian: debootstrap, chroot, mke2fs.

Called by `tests/campaign/debian.py` and `tests/two_kernels/image.py`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from coloctl.errors import ProvisionError

#: debootstrap mounts things below its target and unmounts them where it ends by itself. In
#: namespaces of its own its processes and mounts end with it, also where it is killed, and so do
#: those of maintainer scripts.
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def run(built: str, command: Sequence[str], **env: str) -> None:
    """Run one command of a build, in English and without input.

    ``built`` names in a message the thing that is built. Raises `ProvisionError` with the
    command's last lines where it fails.
    """
    done = subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-3:]
        raise ProvisionError(f"{command[0]} failed while it built {built}: {' / '.join(last)}")
