"""What a QEMU of another user may do with the files of its pair, and that they are given back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl.errors import LaunchError, PreconditionFailed
from coloctl.host import account, ownership
from coloctl.host.holders import holders
from coloctl.host.launch import discard, spawn
from coloctl.host.local import LocalHost
from coloctl.model.launch import Account, Launch
from coloctl.supervisor import leftovers

USER, GROUP = 61234, 61235
OTHER = Account("tester", USER, GROUP)
#: One that every user may run; the tests' own may lie in a private folder.
PYTHON = "/usr/bin/python3"
SLEEPER = ("/bin/sleep", "1000")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may pass, with a state folder in it."""
    if os.geteuid() != 0 or account.find(str(USER)) is None:
        pytest.skip("only root of the whole machine can give files to another user")
    folder = Path(tempfile.mkdtemp(prefix="coloctl-lent-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder / "run"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def rundir(base: Path) -> Path:
    folder = base / "run" / "web" / "a"
    for one in (folder.parent.parent, folder.parent, folder):
        one.mkdir(mode=0o700)
    return folder


@pytest.fixture
def image(base: Path) -> Path:
    file = base / "images" / "web.qcow2"
    file.parent.mkdir(mode=0o755)
    file.write_bytes(b"disk")
    file.chmod(0o600)
    return file


def owner(path: Path) -> int:
    return path.lstat().st_uid


def as_other(code: str, *arguments: object) -> str:
    """What a program of the other user prints: the number of the error, or nothing."""
    text = f"import sys, os\ntry:\n  {code}\nexcept OSError as e: print(e.strerror)"
    done = subprocess.run(
        [PYTHON, "-S", "-c", text, *map(str, arguments)],
        **{"user": USER, "group": GROUP, "extra_groups": []},  # type: ignore[call-overload]
        capture_output=True,
        text=True,
        check=True,
    )
    return str(done.stdout.strip())


def lend(rundir: Path, *owned: Path, reads: tuple[Path, ...] = ()) -> None:
    ownership.lend(rundir, Launch((), owned=owned, reads=reads), OTHER)


def test_an_image_is_lent_and_given_back(rundir: Path, image: Path) -> None:
    lend(rundir, image)
    assert owner(image) == USER and image.stat().st_gid == os.getegid()
    assert ownership.user_of(rundir) == USER
    record = ownership.record_of(rundir)
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    lend(rundir, image)  # a second QEMU, after a supervisor that died: the first owner stays known
    ownership.take_back(rundir)
    assert (owner(image), record.exists(), ownership.user_of(rundir)) == (0, False, None)
    assert stat.S_IMODE(rundir.stat().st_mode) == 0o700 and rundir.stat().st_gid == os.getegid()
    ownership.take_back(rundir)
    assert owner(image) == 0


async def test_what_is_left_of_a_pair_gives_its_files_back(rundir: Path, image: Path) -> None:
    """By another machine's agent, by a sweep of the node, and where the folder is discarded."""
    async with LocalHost() as host:
        lend(rundir, image)
        await host.sweep(rundir)
        assert owner(image) == 0
        lend(rundir, image)
        await host.sweep(rundir.parent, logs=True)
        assert owner(image) == 0 and not rundir.parent.exists()
    rundir.mkdir(parents=True, mode=0o700)
    lend(rundir, image)
    leftovers.discard(rundir.parent)
    assert owner(image) == 0 and not rundir.parent.exists()


def test_what_changed_hands_meanwhile_is_left(rundir: Path, image: Path) -> None:
    lend(rundir, image)
    os.chown(image, 4711, -1)
    ownership.take_back(rundir)
    assert owner(image) == 4711


def test_a_record_of_another_user_is_not_believed(rundir: Path, image: Path) -> None:
    record = ownership.record_of(rundir)
    record.write_text(json.dumps({"uid": 0, "files": {str(image): USER}}))
    os.chown(record, USER, -1)
    ownership.take_back(rundir)
    assert owner(image) == 0


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"uid": "x", "files": {}}', '{"uid": 1}', '{"uid":1,"files":[1]}']
)
def test_a_damaged_record_gives_nothing_away(rundir: Path, image: Path, text: str) -> None:
    ownership.record_of(rundir).write_text(text)
    ownership.take_back(rundir)
    assert ownership.user_of(rundir) is None and owner(image) == 0


def test_the_folder_lets_its_user_add_files_and_replace_none(rundir: Path) -> None:
    (rundir / "qemu.log").write_text("first\n")
    (rundir / "console.log").write_text("booted\n")
    lend(rundir)
    assert as_other("open(sys.argv[1], 'x')", rundir / "mirror0.sock") == ""
    assert as_other("open(sys.argv[1], 'a').write('more')", rundir / "console.log") == ""
    for code in ("open(sys.argv[1], 'a')", "os.unlink(sys.argv[1])", "os.rename(sys.argv[1], 'x')"):
        assert as_other(code, rundir / "qemu.log")
    assert as_other("os.rename(sys.argv[1], sys.argv[1] + 'x')", rundir)
    assert as_other("os.listdir(sys.argv[1])", rundir.parent) == "Permission denied"
    assert as_other("open(sys.argv[1])", ownership.record_of(rundir)) == "Permission denied"


def test_a_console_that_is_a_link_gives_nothing_away(rundir: Path, image: Path) -> None:
    (rundir / "console.log").symlink_to(image)
    with pytest.raises(PreconditionFailed, match="cannot be given"):
        lend(rundir)
    (rundir / "console.log").unlink()
    os.link(image, rundir / "console.log")
    lend(rundir)
    assert owner(image) == 0


async def test_credentials_are_readable_before_and_after_the_start(rundir: Path) -> None:
    async with LocalHost() as host:
        await host.put(rundir / "tls-1" / "key.pem", b"first", 0o600)
        lend(rundir)
        await host.put(rundir / "tls-2" / "key.pem", b"second", 0o600)
        for name in ("tls-1", "tls-2"):
            key = rundir / name / "key.pem"
            assert as_other("open(sys.argv[1])", key) == ""
            assert as_other("open(sys.argv[1], 'w')", key) == "Permission denied"
            assert as_other("os.unlink(sys.argv[1])", key) == "Permission denied"
            assert stat.S_IMODE(key.stat().st_mode) == 0o640 and owner(key) == 0
        await host.make_private(rundir)
        assert as_other("open(sys.argv[1])", rundir / "tls-1" / "key.pem")
        await host.put(rundir / "other" / "key.pem", b"third", 0o600)
        assert stat.S_IMODE((rundir / "other" / "key.pem").stat().st_mode) == 0o600


def test_a_folder_on_the_way_must_let_it_through(rundir: Path, image: Path) -> None:
    image.parent.chmod(0o700)
    with pytest.raises(PreconditionFailed, match=r"tester cannot reach .*images \(mode 0700\)"):
        lend(rundir, image)
    assert owner(image) == 0


def test_a_kernel_must_be_readable(rundir: Path, image: Path) -> None:
    with pytest.raises(PreconditionFailed, match=r"tester cannot read .*qcow2 \(mode 0600\)"):
        lend(rundir, reads=(image,))
    os.chown(image, -1, GROUP)
    image.chmod(0o640)
    lend(rundir, reads=(image,))


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_no_file_is_given_that_its_user_could_have_put_there(
    rundir: Path, image: Path, mode: int
) -> None:
    image.parent.chmod(mode)
    with pytest.raises(PreconditionFailed, match="could put another file in place"):
        lend(rundir, image)
    image.parent.chmod(0o755)
    os.chown(image.parent, USER, -1)
    with pytest.raises(PreconditionFailed, match="could put another file in place"):
        lend(rundir, image)
    assert owner(image) == 0


def test_a_link_of_root_is_followed_and_one_of_that_user_is_not(
    base: Path, rundir: Path, image: Path
) -> None:
    link = base / "link"
    link.symlink_to(f"images/../images/{image.name}")
    lend(rundir, link)
    assert owner(image) == USER and owner(link) == 0
    ownership.take_back(rundir)
    assert owner(image) == 0
    theirs = base / "theirs"
    theirs.mkdir()
    os.chown(theirs, USER, -1)
    (theirs / "web.qcow2").symlink_to(image)
    with pytest.raises(PreconditionFailed, match="could put another file in place"):
        lend(rundir, theirs / "web.qcow2")
    loop = base / "loop"
    loop.symlink_to(loop)
    with pytest.raises(PreconditionFailed, match="too many links"):
        lend(rundir, loop)
    assert owner(image) == 0


def test_only_files_and_block_devices_are_given(base: Path, rundir: Path) -> None:
    os.mkfifo(base / "pipe")
    with pytest.raises(PreconditionFailed, match="neither a file nor a block device"):
        lend(rundir, base / "pipe")


def test_a_program_that_does_not_start_leaves_all_as_it_was(rundir: Path, image: Path) -> None:
    program = Launch(("/nowhere/qemu",), account=OTHER, owned=(image,))
    with pytest.raises(LaunchError):
        spawn(program, stderr=rundir / "qemu.log")
    assert owner(image) == 0 and not ownership.record_of(rundir).exists()


def test_a_stray_of_that_user_is_found_by_its_socket(rundir: Path) -> None:
    socket = rundir / "qmp.sock"
    process = spawn(Launch(SLEEPER, {"qmp": socket}, account=OTHER), stderr=rundir / "qemu.log")
    try:
        assert process.identity.uid == USER
        assert [one.identity for one in holders([socket])[socket]] == [process.identity]
    finally:
        discard(process, [socket])


def test_an_account_is_found_by_name_and_by_number() -> None:
    if os.geteuid() != 0 or account.find(str(USER)) is None:
        pytest.skip("this user namespace has not every user")
    root, unknown = account.find("root"), account.find(str(USER))
    assert root is not None and (root.name, root.uid, root.gid) == ("root", 0, 0)
    assert unknown is not None and (unknown.uid, unknown.gid) == (USER, USER)
    assert account.find("no-such-user") is None
    with pytest.raises(PreconditionFailed, match="nobody shares its group with"):
        account.find("nobody")
