"""How the commands run that build the root filesystem of a Debian: debootstrap, chroot.

Called by `tests/campaign/debian.py` and `tests/two_kernels/image.py`.
"""

from __future__ import annotations

#: debootstrap mounts things below its target and unmounts them where it ends by itself. In
#: namespaces of its own its processes and mounts end with it, also where it is killed, and so do
#: those of maintainer scripts.
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
