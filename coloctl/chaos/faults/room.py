"""Fill the filesystems of a pair: that of its state, and those of its disk images.

Registered in `chaos.faults`. Each of them is a small filesystem of the run, mounted by `lab.kernel`
before the pair's file is written.

Invariant: nothing outside these mounts is ever filled, and they go with the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, Setup, environment_set, fault
from coloctl.chaos.scenario.tables import Params
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


class RoomParams(Params):
    """The room that is left."""

    leave_kib: int = Field(default=0, ge=0)


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Path]:
    """Mount a filesystem of ``size`` bytes at ``folder``; it is gone after the block."""
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
def small_state(setup: Setup) -> Iterator[None]:
    """Put the pair's state on a small filesystem of this run; raises `LabError` without root."""
    # A short path: sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    setup.environment[STATE] = str(folder)
    try:
        with _mounted(folder, STATE_ROOM), environment_set({STATE: str(folder)}):
            yield
    finally:
        folder.rmdir()


def _images_of(home: Path, node: str) -> Path:
    return home / f"images-{node}"


@contextlib.contextmanager
def small_images(setup: Setup) -> Iterator[None]:
    """Put each node's images on a small filesystem; raises `LabError` without root."""
    with contextlib.ExitStack() as stack:
        for node in NODES:
            folder = _images_of(setup.home, node)
            folder.mkdir()
            stack.callback(folder.rmdir)
            setup.images[node] = stack.enter_context(_mounted(folder, IMAGE_ROOM))
        yield


def _take(fd: int, folder: Path, leave: int) -> int:
    """Extend the file over all room but ``leave`` bytes; return its size.

    An overlay may grow between the query and the allocation: then the room is asked for again.
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


class Filled(Fault[RoomParams]):
    """A filesystem of the run is filled; the base of several kinds."""

    params = RoomParams
    lasting = True
    _folders: tuple[Path, ...] = ()

    def fill(self, folders: list[Path], nodes: tuple[str, ...] = ()) -> Injected:
        """Take all room in the folders, except the part that is to be left."""
        at_s, taken = time.monotonic(), 0
        self._folders = tuple(folders)
        for folder in folders:
            with (folder / BALLAST).open("wb") as file:
                taken += _take(file.fileno(), folder, self.given.leave_kib * 1024)
        return Injected(at_s, nodes, note=f"{taken // MIB} MiB of ballast")

    def heal(self) -> None:
        """Free the room that was taken."""
        for folder in self._folders:
            (folder / BALLAST).unlink(missing_ok=True)


@fault("filesystem-full")
class FilesystemFull(Filled):
    """A full filesystem under state and journal, until it is healed."""

    targets = ("state",)
    prepare = small_state

    def begin(self) -> Injected:
        """Fill the filesystem of the pair's state.

        Raises `NothingToHit` when that is no filesystem of its own.
        """
        folder = Path(os.environ.get(STATE, ""))
        if not folder.is_absolute() or not os.path.ismount(folder):
            raise NothingToHit("the pair's state has no filesystem of its own")
        return self.fill([folder])


@fault("images-full")
class ImagesFull(Filled):
    """A full filesystem under a node's images and overlays, until it is healed."""

    targets = (*NODES, "both")
    sites = ("lab",)
    prepare = small_images

    def begin(self) -> Injected:
        """Fill the filesystems of the target's images.

        Raises `NothingToHit` when one of them is no filesystem of its own.
        """
        nodes = NODES if self.target == "both" else (self.target,)
        folders = [_images_of(self.pair.home, node) for node in nodes]
        if not all(os.path.ismount(folder) for folder in folders):
            raise NothingToHit("the images have no filesystem of their own")
        return self.fill(folders, nodes)
