"""Replace a file as a whole, so that a reader sees the old content or the new, never half of one.

Called by `host.durable`, which also brings it to the disk, by `probe_cache`, `cli.bench_options`,
`cli.verbs.schema`, `lab.rootless`, `control.daemon.home` and `supervisor.started`. Invariant: an
error leaves the old file, and no draft beside it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def replace(
    path: Path,
    content: bytes,
    *,
    mode: int = 0o644,
    before: Callable[[int], None] = lambda fd: None,
) -> None:
    """Replace ``path`` by a file that holds ``content``; raises `OSError`.

    A new file has ``mode``, less the umask. ``before`` gets the open descriptor once all is
    written, and may flush it or raise; only then is the file renamed to ``path``.
    """
    # A name of its own: two writers never fill the same file, and none that lies there is followed.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        while content:
            content = content[os.write(fd, content) :]
        before(fd)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
