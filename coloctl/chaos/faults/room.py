"""Fill the filesystems of a pair: that of its state, and those of its disk images.

Each of them is a small filesystem of the run, mounted before the pair's file is written. Invariant:
nothing outside these mounts is ever filled, and they go with the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params, Staging
from coloctl.chaos.scenario.values import Planned
from coloctl.errors import LabError
from coloctl.lab.kernel import MNT_DETACH, call
from coloctl.model.pair import NODES

MIB = 1 << 20
#: The filesystem of the pair's state in a run that may fill it: journal and logs of minutes.
STATE_ROOM = 256 * MIB
#: That of one node's images: the lab's disk with all that clients write in a minute.
IMAGE_ROOM = 128 * MIB
BALLAST = "ballast"
STATE = "COLOCTL_STATE_DIR"
#: A disk that is written to all the time is caught in the end.
TAKES_MAX = 50


class FilesystemFull(Params):
    """How much room is left."""

    leave_kib: int = Field(0, ge=0)


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Path]:
    """Mount a filesystem of ``size`` bytes at ``folder``; it is gone behind the block."""
    try:
        options = f"size={size},mode=0700".encode()
        call("mount", b"coloctl", os.fsencode(folder), b"tmpfs", 0, options)
    except OSError as error:
        raise LabError(
            f"A small filesystem cannot be mounted: {error.strerror}.", hint="run as root"
        ) from None
    try:
        yield folder
    finally:
        call("umount2", os.fsencode(folder), MNT_DETACH)


@contextlib.contextmanager
def small_state(staging: Staging) -> Iterator[None]:
    """Put the pair's state on a small filesystem of this run."""
    # A short path: sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    before = os.environ.get(STATE)
    try:
        with _mounted(folder, STATE_ROOM):
            try:
                os.environ[STATE] = staging.environment[STATE] = str(folder)
                yield
            finally:
                if before is None:
                    os.environ.pop(STATE, None)
                else:
                    os.environ[STATE] = before
    finally:
        folder.rmdir()


def _images_of(home: Path, node: str) -> Path:
    return home / f"images-{node}"


@contextlib.contextmanager
def small_images(staging: Staging) -> Iterator[None]:
    """Put each node's images on a small filesystem of this run."""
    with contextlib.ExitStack() as stack:
        for node in NODES:
            folder = _images_of(staging.home, node)
            folder.mkdir()
            stack.callback(folder.rmdir)
            staging.images[node] = stack.enter_context(_mounted(folder, IMAGE_ROOM))
        yield


def fill_state(_ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Take all room of the filesystem of the pair's state, but what is to be left."""
    folder = Path(os.environ.get(STATE, ""))
    if not folder.is_absolute() or not os.path.ismount(folder):
        return Blow(time.monotonic(), missed="the pair's state has no filesystem of its own")
    return _fill([folder], fault)


def fill_images(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Take all room beside the images of one node or of both, but what is to be left."""
    nodes = NODES if fault.target == "both" else (fault.target,)
    folders = [_images_of(ground.home, node) for node in nodes]
    if not all(os.path.ismount(folder) for folder in folders):
        return Blow(time.monotonic(), missed="the images have no filesystem of their own")
    return _fill(folders, fault, nodes)


def _fill(folders: list[Path], fault: Planned, nodes: tuple[str, ...] = ()) -> Blow:
    at_s, taken = time.monotonic(), 0

    def heal() -> None:
        for folder in folders:
            (folder / BALLAST).unlink(missing_ok=True)

    try:
        for folder in folders:
            with (folder / BALLAST).open("wb") as file:
                taken += _take(file.fileno(), folder, fault.params["leave_kib"] * 1024)
    except BaseException:
        heal()
        raise
    return Blow(at_s, heal, nodes, note=f"{taken // MIB} MiB of ballast")


def _take(fd: int, folder: Path, leave: int) -> int:
    """Let the file take all room but ``leave`` bytes; answers its size.

    An overlay may grow between the look and the grip: then it is looked at again.
    """
    for _ in range(TAKES_MAX):
        room = max(0, shutil.disk_usage(folder).free - leave)
        try:
            if room:
                os.posix_fallocate(fd, 0, room)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        else:
            return room
    return 0


FAULTS: Mapping[str, FaultKind] = {
    "filesystem-full": FaultKind(
        "There is no room where state and journal lie, until it is healed.",
        fill_state,
        ("state",),
        FilesystemFull,
        lasting=True,
        prepare=small_state,
    ),
    "images-full": FaultKind(
        "There is no room where a node's images and overlays lie, until it is healed.",
        fill_images,
        (*NODES, "both"),
        FilesystemFull,
        lasting=True,
        prepare=small_images,
    ),
}
