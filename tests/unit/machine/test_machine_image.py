"""What qemu-img says becomes a fact, or a sentence that names the image."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from coloctl.errors import PreconditionFailed
from coloctl.host.base import Completed
from coloctl.machine import image
from coloctl.model.units import MIB

pytestmark = pytest.mark.unit

DISK = Path("/srv/a.qcow2")
ANSWER = {
    "virtual-size": 64 * MIB,
    "filename": str(DISK),
    "format": "qcow2",
    "actual-size": 200704,
    "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "corrupt": False}},
}


class Answers:
    """A host whose qemu-img always ends the same way, and which remembers what it was asked."""

    def __init__(self, code: int = 0, stdout: str = "", stderr: str = "") -> None:
        self.done = Completed(code, stdout, stderr)
        self.argv: list[str] = []

    async def __call__(self, argv: Sequence[str], *, deadline_s: float) -> Completed:
        assert deadline_s > 0
        self.argv = list(argv)
        return self.done


def complaint(answers: Answers) -> PreconditionFailed:
    with pytest.raises(PreconditionFailed) as caught:
        asyncio.run(image.info(DISK, answers, image_format="qcow2"))
    assert str(DISK) in caught.value.message
    return caught.value


async def test_an_image_in_use_can_be_asked() -> None:
    answers = Answers(stdout=json.dumps(ANSWER))
    found = await image.info(DISK, answers, image_format="qcow2", qemu_img=Path("/x/qemu-img"))
    assert (found.format, found.virtual_size, found.backing) == ("qcow2", 64 * MIB, None)
    assert answers.argv[:3] == ["/x/qemu-img", "info", "-U"]
    assert answers.argv[3:5] == ["-f", "qcow2"]


async def test_what_newer_versions_add_does_no_harm() -> None:
    more = ANSWER | {"children": [], "dirty-flag": False}
    assert await image.virtual_size(DISK, Answers(stdout=json.dumps(more))) == 64 * MIB


@pytest.mark.parametrize(
    ("stderr", "words", "hint"),
    [
        (
            "qemu-img: Could not open '/srv/a.qcow2': Could not open '/srv/a.qcow2': "
            "No such file or directory\n",
            "cannot be used as a disk image: No such file or directory.",
            "qemu-img create",
        ),
        (
            "qemu-img: Could not open '/srv/a.qcow2': Image is not in qcow2 format\n",
            "Image is not in qcow2 format.",
            "raw",
        ),
        ("", "gave no reason", None),
    ],
)
def test_a_bad_image_is_one_sentence(stderr: str, words: str, hint: str | None) -> None:
    error = complaint(Answers(1, stderr=stderr))
    assert error.message.endswith(words) or words in error.message
    assert "\n" not in error.message
    assert (error.hint is None) if hint is None else (hint in (error.hint or ""))


@pytest.mark.parametrize(
    "stdout", ["", "[]", "{}", '{"format": "raw", "virtual-size": null}', "nonsense"]
)
def test_an_answer_that_is_none_is_said_so(stdout: str) -> None:
    assert "nothing usable" in complaint(Answers(stdout=stdout)).message


def test_a_corrupt_image_is_refused() -> None:
    broken = ANSWER | {"format-specific": {"data": {"corrupt": True}}}
    error = complaint(Answers(stdout=json.dumps(broken)))
    assert "corrupt" in error.message
    assert "check" in (error.hint or "")


def test_unequal_sizes_are_told_with_the_cure() -> None:
    a = image.ImageInfo(Path("/srv/a.qcow2"), "qcow2", 64 * MIB, 0)
    b = image.ImageInfo(Path("/srv/b.img"), "raw", 64 * MIB + 512, 0)
    image.require_equal_sizes(a, a)
    with pytest.raises(PreconditionFailed, match="64 MiB") as caught:
        image.require_equal_sizes(b, a)
    assert caught.value.hint is not None
    assert f"/srv/a.qcow2 {64 * MIB + 512}" in caught.value.hint
    with pytest.raises(PreconditionFailed) as caught:
        image.require_equal_sizes(replace(b, machine="hv2"), replace(a, machine="hv1"))
    assert "/srv/a.qcow2 on hv1 holds" in caught.value.message
    assert caught.value.hint and "/srv/a.qcow2 67109376` on hv1" in caught.value.hint


@pytest.mark.parametrize(("code", "same"), [(0, True), (1, False)])
async def test_content_is_compared_as_the_guest_sees_it(code: int, same: bool) -> None:
    answers = Answers(code)
    b = Path("/srv/b.qcow2")
    assert await image.same_content(DISK, b, "qcow2", answers) is same
    assert answers.argv[-2:] == [str(DISK), str(b)]


async def test_a_comparison_that_fails_is_no_difference() -> None:
    with pytest.raises(PreconditionFailed, match="compared"):
        await image.same_content(DISK, DISK, "raw", Answers(2, stderr="qemu-img: boom"))


async def test_overlays_that_cannot_be_written_are_named() -> None:
    full = Answers(1, stderr="qemu-img: /run/x: Could not write: No space left on device\n")
    with pytest.raises(PreconditionFailed, match="/run/x") as caught:
        await image.create_overlay(Path("/run/x"), 1024, full)
    assert caught.value.hint is not None


def test_qemu_img_is_taken_from_beside_the_binary(tmp_path: Path) -> None:
    binary = tmp_path / "qemu-system-x86_64"
    assert image.tool(binary) == image.QEMU_IMG
    (tmp_path / "qemu-img").touch()
    assert image.tool(binary) == tmp_path / "qemu-img"
    assert image.tool(Path("qemu-system-x86_64")) == image.QEMU_IMG
