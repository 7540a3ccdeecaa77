"""Inspect, create and compare disk images through ``qemu-img``, on the host that has them.

Called by `colo.overlays`, `colo.launch` and `check.disks`, among others. Every function takes
``run``, which executes a command on the host that has the image. It raises `PreconditionFailed`
when there is no such program, `DeadlineMissed` when it takes too long. Images may be in use by a
running QEMU: they are read with ``-U``.

Invariant: no function here opens an image itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from coloctl.errors import PreconditionFailed
from coloctl.model import units


class CommandEnd(Protocol):
    """The end of a command: exit code and output."""

    @property
    def code(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class RunCommand(Protocol):
    """The function by which a host executes a command to its end."""

    async def __call__(self, argv: Sequence[str], *, deadline_s: float) -> CommandEnd: ...


#: The one on the host's PATH; see `tool`.
QEMU_IMG = Path("qemu-img")

#: Reading or writing a header; a busy disk is the slow case.
HEADER_DEADLINE_S = 30.0
#: Reading two images to their ends: about a TiB at a GB/s.
CONTENT_DEADLINE_S = 1200.0


@dataclass(frozen=True)
class ImageInfo:
    """The facts that ``qemu-img info`` reports of one image; sizes in bytes."""

    path: Path
    format: str
    virtual_size: int
    actual_size: int
    backing: str | None = None
    corrupt: bool = False
    machine: str = ""  #: its name where the two images of a disk are on different machines

    @property
    def place(self) -> str:
        """The path, and the machine where that matters."""
        return f"{self.path} on {self.machine}" if self.machine else str(self.path)


def tool(binary: Path) -> Path:
    """Find the ``qemu-img`` of the same build as ``binary``, else the one on PATH."""
    beside = binary.with_name("qemu-img")
    return beside if binary.is_absolute() and beside.exists() else QEMU_IMG


async def info(
    path: Path, run: RunCommand, *, image_format: str | None = None, qemu_img: Path = QEMU_IMG
) -> ImageInfo:
    """Inspect an image.

    Raises `PreconditionFailed` naming the image when it is missing, unreadable, damaged, or not of
    ``image_format``. With ``image_format`` the header of the image is not believed: a raw disk's
    guest writes it.
    """
    as_format = ("-f", image_format) if image_format else ()
    argv = [str(qemu_img), "info", "-U", *as_format, "--output=json", str(path)]
    done = await run(argv, deadline_s=HEADER_DEADLINE_S)
    if done.code != 0:
        raise PreconditionFailed(
            f"{path} cannot be used as a disk image: {_reason(done.stderr)}.",
            hint=_hint(done.stderr),
        )
    found = _parse(path, done.stdout)
    if image_format == "raw":
        await _require_raw(path, run)
    if found.corrupt:
        raise PreconditionFailed(
            f"{path} is marked as corrupt.", hint=f"`qemu-img check -r all {path}` may repair it"
        )
    return found


#: How files of other formats begin (QEMU's block/qcow2.h, block/vmdk.c, block/vhdx.h, block/qed.h,
#: block/vdi.c). A raw disk may begin with anything else, also with a LUKS header.
_BEGINNINGS = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
    b"QED\0": "qed",
    b"<<< ": "vdi",
}


async def _require_raw(path: Path, run: RunCommand) -> None:
    """Raise `PreconditionFailed` for a file of another format that is to be used as raw.

    Its guest would get the format's own tables as its disk, and overwrite them.
    """
    done = await run(
        ["od", "-A", "n", "-v", "-t", "x1", "-N", "8", str(path)], deadline_s=HEADER_DEADLINE_S
    )
    try:
        head = bytes.fromhex("".join(done.stdout.split()))
    except ValueError:
        return
    for beginning, name in _BEGINNINGS.items():
        if head.startswith(beginning):
            usable = name == "qcow2"
            raise PreconditionFailed(
                f"{path} is a {name} image, and the pair file says raw.",
                hint='write format = "qcow2" in its [[disk]]'
                if usable
                else f"`qemu-img convert -f {name} -O qcow2 {path} NEW` makes one that can be used",
            )


def _parse(path: Path, document: str) -> ImageInfo:
    try:
        answer: dict[str, Any] = json.loads(document)
        specific = answer.get("format-specific", {}).get("data", {})
        return ImageInfo(
            path=path,
            format=answer["format"],
            virtual_size=int(answer["virtual-size"]),
            actual_size=int(answer.get("actual-size", 0)),
            backing=answer.get("backing-filename"),
            corrupt=bool(specific.get("corrupt", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreconditionFailed(
            f"qemu-img says nothing usable about {path}.", hint=f"its answer: {document.strip()!r}"
        ) from error


async def virtual_size(
    path: Path, run: RunCommand, *, image_format: str | None = None, qemu_img: Path = QEMU_IMG
) -> int:
    """Return the size that a guest sees, in bytes; raises as `info` does."""
    return (await info(path, run, image_format=image_format, qemu_img=qemu_img)).virtual_size


def require_equal_sizes(a: ImageInfo, b: ImageInfo) -> None:
    """Check that both images hold the same disk size; raises `PreconditionFailed` naming both."""
    if a.virtual_size == b.virtual_size:
        return
    small, large = sorted((a, b), key=lambda each: each.virtual_size)
    raise PreconditionFailed(
        f"{small.place} holds a disk of {units.size(small.virtual_size)} and {large.place} one of "
        f"{units.size(large.virtual_size)};"
        " both sides of a pair need the same size.",
        hint=f"`qemu-img resize -f {small.format} {small.path} {large.virtual_size}`"
        f"{f' on {small.machine}' if small.machine else ''} makes them equal",
    )


#: The words after it are the image to be like, the new one, and the command that makes it.
_CREATE = """
umask 077; like=$1 path=$2; shift 2
"$@" || exit
[ -f "$like" ] && [ -f "$path" ] && [ ! "$like" -ef "$path" ] || exit 0
chmod --reference="$like" -- "$path" || exit
[ "$(id -u)" != 0 ] || chown --reference="$like" -- "$path"
"""


async def create_overlay(
    path: Path, size: int, run: RunCommand, *, qemu_img: Path = QEMU_IMG
) -> None:
    """Create an empty qcow2 of ``size`` bytes at ``path``, in place of an earlier file.

    Raises `PreconditionFailed` naming it when it cannot be written.
    """
    await create(path, size, "qcow2", run, qemu_img=qemu_img)


async def create(
    path: Path,
    size: int,
    image_format: str,
    run: RunCommand,
    *,
    qemu_img: Path = QEMU_IMG,
    like: Path | None = None,
) -> None:
    """Create an empty image of ``size`` bytes at ``path``, in place of an earlier file.

    Only this user may read it, from its first moment on; with ``like`` it gets the mode and
    the owner of that image, where both are files that the host of ``run`` has. Raises
    `PreconditionFailed` naming it when it cannot be written.
    """
    made = [str(qemu_img), "create", "-q", "-f", image_format, str(path), str(size)]
    argv = ["sh", "-c", _CREATE, "sh", str(like or ""), str(path), *made]
    done = await run(argv, deadline_s=HEADER_DEADLINE_S)
    if done.code != 0:
        raise PreconditionFailed(
            f"{path} cannot be made: {_reason(done.stderr)}.", hint=_hint(done.stderr)
        )


async def same_content(
    a: Path,
    b: Path,
    image_format: str,
    run: RunCommand,
    *,
    qemu_img: Path = QEMU_IMG,
    deadline_s: float = CONTENT_DEADLINE_S,
) -> bool:
    """Return whether a guest would read the same bytes from both; both lie on the host of ``run``.

    Raises `PreconditionFailed` when one of them cannot be read.
    """
    as_formats = ("-f", image_format, "-F", image_format)
    argv = [str(qemu_img), "compare", "-U", "-q", *as_formats, str(a), str(b)]
    done = await run(argv, deadline_s=deadline_s)
    if done.code not in {0, 1}:
        raise PreconditionFailed(
            f"{a} and {b} cannot be compared: {_reason(done.stderr)}.", hint=_hint(done.stderr)
        )
    return done.code == 0


def reason(stderr: str) -> tuple[str, str | None]:
    """Explain why ``qemu-img`` failed, and return the next thing to try where that is known."""
    return _reason(stderr), _hint(stderr)


def _reason(stderr: str) -> str:
    """Return the end of qemu-img's last line, which has the file's name once or twice before it."""
    lines = stderr.strip().splitlines()
    if not lines:
        return "qemu-img gave no reason"
    last = lines[-1].removeprefix("qemu-img: ").rstrip(".")
    return last.rsplit("': ", 1)[-1]


def _hint(stderr: str) -> str | None:
    """Return the next thing to try, for the errors that qemu-img reports most often."""
    hints = {
        "No such file": "make it with `qemu-img create`, or correct the path in the pair file",
        "Permission denied": "give the user that runs coloctl read and write permission",
        "not in qcow2 format": 'write format = "raw" in the pair file if it is a raw image',
        "Failed to get": "another program holds the image's lock",
        "No space left": "overlays grow between checkpoints: give them a larger file system",
    }
    return next((hint for words, hint in hints.items() if words in stderr), None)
