"""Each thing that can be wrong with another machine stops a start, and leaves nothing on either.

One lab of machines serves all cases: a case spoils one thing on hv2, types `start`, and mends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import sshhost
from support.certificates import Authority

from coloctl import paths
from coloctl.certs import store
from coloctl.certs.issue import Credentials
from coloctl.check.connection import examine_connection
from coloctl.check.finding import Severity
from coloctl.cli.verbs import run_verb
from coloctl.colo.inspect import READY_DEADLINE_S
from coloctl.host import open_host
from coloctl.lab import guest, machine_pair, machine_store, qemu
from coloctl.lab.impairment import Impairment
from coloctl.lab.machine import MachineState
from coloctl.lab.machines import Machines

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

#: What a start that was refused may take to have ended its agents; nothing measures against it.
ENDED_S = 60.0
HV2 = "10.66.0.2"
TLS = Path("/etc/coloctl/tls")
DISK = machine_pair.image_of("bad")

#: A Python that is older than it is: the loader's own check refuses it.
OLD_PYTHON = f"""#!/bin/sh
[ "$4" = 0 ] && exit 0
exec {sys.executable} -I -S -c "import sys; sys.version_info = (3, 9, 2, 'final', 0)
$4" "$5"
"""


@dataclass
class Place:
    """The lab, and the pair file of a sound pair on it."""

    lab: Machines
    text: str
    folder: Path
    builds: Callable[[str], qemu.Build]

    def there(self, path: str | Path) -> Path:
        """A file of hv2 as it is found from outside."""
        return self.lab.machine("hv2").here(Path(path))

    def run(self, *argv: str) -> None:
        with self.lab.machine("hv2").popen(argv) as process:
            assert process.wait(60) == 0, argv

    def home(self, name: str) -> Path:
        return machine_store.home(self.lab.name) / name


Spoiled = Callable[[Place], AbstractContextManager[str]]


@contextlib.contextmanager
def holding(file: Path, text: str) -> Iterator[None]:
    """Let the file hold another text meanwhile."""
    before, mode = file.read_bytes(), file.stat().st_mode
    file.write_text(text)
    try:
        yield
    finally:
        file.write_bytes(before)
        file.chmod(mode)


@contextlib.contextmanager
def program(file: Path, text: str) -> Iterator[None]:
    """Let there be such a program meanwhile."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    try:
        yield
    finally:
        file.unlink()


def file_of(which: Callable[[Place], Path], text: Callable[[Place], str]) -> Spoiled:
    @contextlib.contextmanager
    def spoil(place: Place) -> Iterator[str]:
        with holding(which(place), text(place)):
            yield place.text

    return spoil


def known_hosts(change: Callable[[list[str]], list[str]]) -> Spoiled:
    """Other lines in the file of the keys that this side knows."""

    def file(place: Place) -> Path:
        return place.home("known_hosts")

    return file_of(file, lambda p: "".join(change(file(p).read_text().splitlines(keepends=True))))


def server(line: str, name: str = "", program_text: str = "") -> Spoiled:
    """One more line for the ssh server of hv2, and a program that it names."""

    @contextlib.contextmanager
    def spoil(place: Place) -> Iterator[str]:
        config = place.there("/etc/ssh/sshd_config")
        with contextlib.ExitStack() as stack:
            if name:
                stack.enter_context(program(place.there(name), program_text))
            text = "".join(
                one for one in config.read_text().splitlines(True) if not one.startswith("SetEnv")
            )
            stack.enter_context(holding(config, f"{line}\n{text}"))
            yield place.text

    return spoil


def written(old: str, new: str) -> Spoiled:
    """Another word in the pair file."""

    @contextlib.contextmanager
    def spoil(place: Place) -> Iterator[str]:
        assert old in place.text
        yield place.text.replace(old, new)

    return spoil


@contextlib.contextmanager
def off(place: Place) -> Iterator[str]:
    place.lab.machine("hv2").crash()
    # A kernel that still knows the address waits for ten seconds, one that does not for three.
    with place.lab.machine("witness").popen(["ip", "neigh", "flush", "all"]) as process:
        assert process.wait(60) == 0
    try:
        yield place.text
    finally:
        place.lab.machine("hv2").boot()


@contextlib.contextmanager
def another_qemu(place: Place) -> Iterator[str]:
    line = f'address = "{HV2}"'
    yield place.text.replace(line, f'{line}\nqemu = "{place.builds("10.0").binary}"')


def certificate(made: Callable[[Authority], tuple[Authority, Credentials]]) -> Spoiled:
    """Another certificate for hv2 than the lab has given it."""

    @contextlib.contextmanager
    def spoil(place: Place) -> Iterator[str]:
        folder = place.home("ca")
        names = ("ca-cert.pem", "ca-key.pem")
        ours = Authority(Credentials(*((folder / one).read_bytes() for one in names)))
        authority, one = made(ours)
        with contextlib.ExitStack() as stack:
            for name, content in (
                (store.CA_CERT, authority.credentials.cert),
                (store.CERT, one.cert),
                (store.KEY, one.key),
            ):
                stack.enter_context(holding(place.there(TLS / name), content.decode()))
            yield place.text

    return spoil


def other_authority(_: Authority) -> tuple[Authority, Credentials]:
    new = Authority.new("another CA")
    return new, new.issue("hv2", HV2)


def clock(shift: str) -> Spoiled:
    """hv2 shows another time: its `date` does, which is what is asked."""

    @contextlib.contextmanager
    def spoil(place: Place) -> Iterator[str]:
        text = f'#!/bin/sh\nexec /bin/date -d "{shift}" "$@"\n'
        with program(place.there("/usr/local/bin/date"), text):
            yield place.text

    return spoil


@contextlib.contextmanager
def wide_frames(place: Place) -> Iterator[str]:
    device = "$(ip -br addr show to 10.66.0.2 | cut -d@ -f1)"
    place.run("sh", "-c", f"ip link set {device} mtu 9000")
    try:
        yield place.text
    finally:
        place.run("sh", "-c", f"ip link set {device} mtu 1500")


@contextlib.contextmanager
def larger_disk(place: Place) -> Iterator[str]:
    disk = place.there(DISK)
    kept = disk.rename(disk.with_name("kept"))
    img = place.builds("11.1").img
    place.run(str(img), "create", "-q", "-f", "qcow2", str(DISK), "1G")
    try:
        yield place.text
    finally:
        kept.rename(disk)


@contextlib.contextmanager
def read_only(place: Place) -> Iterator[str]:
    folder = str(DISK.parent)
    place.run("mount", "--bind", "-o", "ro", folder, folder)
    try:
        yield place.text
    finally:
        place.run("umount", folder)


SMALL = DISK.parent / "small"


def new_image(*options: str) -> Spoiled:
    """The image of hv2 is to be made in a filesystem of its own."""

    @contextlib.contextmanager
    def spoil(place: Place) -> Iterator[str]:
        place.run("mkdir", str(SMALL))
        place.run("mount", "-t", "tmpfs", *options, "tmpfs", str(SMALL))
        try:
            yield place.text.replace(f'b = "{DISK}"', f'b = "{SMALL / DISK.name}"')
        finally:
            place.run("umount", str(SMALL))
            place.run("rmdir", str(SMALL))

    return spoil


#: Case, how it is spoiled, the sentence or its pattern, a part of the hint.
CASES: dict[str, tuple[Spoiled, str, str]] = {
    "host-key-unknown": (
        known_hosts(lambda lines: [one for one in lines if not one.startswith("hv2,")]),
        "The host key of hv2 is not known on this machine.",
        "compare and accept it: `ssh hv2 true`",
    ),
    "host-key-changed": (
        known_hosts(lambda lines: [one.replace("hv1,", "hv1,hv2,") for one in lines[:1]]),
        "The host key of hv2 is another one than this machine knows.",
        "`ssh-keygen -R hv2`",
    ),
    "key-refused": (
        file_of(lambda p: p.there("/root/.ssh/authorized_keys"), lambda p: ""),
        "hv2 accepts none of this user's keys (publickey).",
        "`ssh-copy-id`",
    ),
    # Which of its reasons ssh gives depends on what the kernel still knows of hv2's address.
    "machine-off": (
        off,
        "hv2 (cannot be reached: No route to host|does not answer: .*)\\.",
        "`ssh hv2 true`",
    ),
    "name-unknown": (
        written("ssh://hv2", "ssh://hv9"),
        "The name hv9 cannot be resolved: Name or service not known.",
        "`ssh hv9 true`",
    ),
    "one-machine-by-two-names": (
        written("ssh://hv1", "ssh://root@hv2"),
        "ssh://root@hv2 and ssh://hv2 are one machine, hv2, and the nodes name it in two ways.",
        "write one of the two as the host of both nodes",
    ),
    "no-python": (
        server("SetEnv PATH=/nowhere"),
        "hv2 has no Python on the PATH of its login shell.",
        "install python3 (3.11 or newer) there",
    ),
    "old-python": (
        server("SetEnv PATH=/opt/old", "/opt/old/python3", OLD_PYTHON),
        "hv2 has Python 3.9.2, and coloctl needs 3.11.",
        "install python3.11 or newer there",
    ),
    "agent-of-another-version": (
        server('ForceCommand echo "COLOCTL-AGENT 1 0.0.7"; cat >/dev/null'),
        "The agent on hv2 is coloctl 0.0.7 with protocol 1, and this is",
        "install the same version of coloctl on both machines",
    ),
    "no-qemu": (
        written('address = "10.66.0.2"', 'address = "10.66.0.2"\nqemu = "/opt/none/qemu"'),
        "/opt/none/qemu is not on hv2: No such file or directory.",
        "install qemu-system-x86",
    ),
    "another-qemu": (
        another_qemu,
        "Node b on hv2 has QEMU 10.0.",
        "install one version on both",
    ),
    "certificate-ended": (
        certificate(lambda ca: (ca, ca.issue("hv2", HV2, age_days=400))),
        "The certificate of hv2 ended on ",
        "`coloctl certs renew hv2`",
    ),
    "certificate-for-another-name": (
        certificate(lambda ca: (ca, ca.issue("hv9", HV2))),
        "The certificate on hv2 is for hv9, not for hv2.",
        "`coloctl certs init hv2`",
    ),
    "certificate-of-another-authority": (
        certificate(other_authority),
        "The certificates of hv1 and hv2 come from different authorities.",
        "make both with one `coloctl certs init`",
    ),
    "clock-before-the-certificate": (
        clock("-40 days"),
        "The clock of hv2 is 3456000 s slow, by this machine's. "
        "For it the certificate of hv1 is not valid yet.",
        "`timedatectl set-ntp true` there",
    ),
    "address-not-there": (
        written(f'"{HV2}"', '"10.66.0.77"'),
        "hv2 has no address 10.66.0.77, which node.b.address names.",
        "`ip address` on hv2",
    ),
    "frames-of-another-size": (
        wide_frames,
        "A frame of 9000 bytes from hv2 does not reach hv1.",
        "set one MTU on both machines",
    ),
    "disk-of-another-size": (
        larger_disk,
        f"{DISK} on hv1 holds a disk of 512 MiB and {DISK} on hv2 one of 1 GiB;",
        f"`qemu-img resize -f qcow2 {DISK} 1073741824` on hv1",
    ),
    "read-only": (
        read_only,
        f"disk[0].image.b: {DISK} on hv2 cannot be used: Read-only file system.",
        "`mount -o remount,rw` its filesystem on hv2",
    ),
    "no-room": (
        new_image("-o", "size=64k"),
        rf"{SMALL} on hv2 has 64\.0 KiB of room, and the copy of disk0 needs \d+\.\d KiB\.",
        "make room on hv2, or name another place in the pair file",
    ),
    "read-only-folder": (
        new_image("-o", "ro"),
        f"{SMALL / DISK.name} is not there on hv2, and cannot be made in its folder: Read-only",
        f"`mkdir -p {SMALL}` on hv2, or name another place in the pair file",
    ),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Machines]:
    with Machines.up(f"t{os.getpid()}-bad") as standing:
        yield standing


@pytest.fixture(scope="module")
def place(
    lab: Machines,
    guest_image: guest.GuestImage,
    tmp_path_factory: pytest.TempPathFactory,
    qemu_builds: Callable[[str], qemu.Build],
) -> Place:
    folder = tmp_path_factory.mktemp("bad")
    binary = qemu_builds("11.1").binary
    file = machine_pair.write(
        folder / "bad.toml", name="bad", lab=lab, guest=guest_image, qemu=binary, accel="tcg"
    )
    return Place(lab, file.read_text(), folder, qemu_builds)


@pytest.fixture(autouse=True)
def surroundings(lab: Machines, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLOCTL_SSH", shlex.join(lab.ssh()))
    with tempfile.TemporaryDirectory(prefix="cb-") as state:  # a socket in it needs a short path
        monkeypatch.setenv("COLOCTL_STATE_DIR", state)
        yield


def remains(lab: Machines) -> list[str]:
    """The processes and the files of a pair that are left on a machine."""
    left = lab.busy()
    for name in ("hv1", "hv2"):
        folder = lab.machine(name).here(Path("/run/coloctl"))
        left += [f"{one} on {name}" for one in folder.rglob("*") if one.is_file()]
        disks = lab.machine(name).here(DISK).parent
        kept = (DISK.name, SMALL.name)
        left += [f"{one} on {name}" for one in disks.rglob("*") if one.name not in kept]
    return left


def nothing_is_left(lab: Machines) -> None:
    """An agent ends by itself when its ssh has gone."""
    end = time.monotonic() + ENDED_S
    while left := remains(lab):
        assert time.monotonic() < end, left
        time.sleep(0.02)
    assert not paths.pair_dir("bad").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_start_names_the_machine_and_what_to_type(
    case: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled, sentence, hint = CASES[case]
    with spoiled(place) as text:
        file = place.folder / f"{case}.toml"
        file.write_text(text)
        code = run_verb(["start", str(file)])
    said = " ".join(capsys.readouterr().err.split())
    assert (sentence in said or re.search(sentence, said)) and hint in said, said
    assert code in (1, 2), said
    nothing_is_left(place.lab)


async def test_a_machine_that_answers_late_is_reached_and_named(place: Place) -> None:
    """The agent's program goes over such a connection too, and ssh's own probes wait meanwhile."""
    shutil.rmtree(place.there("/var/cache/coloctl/agent"), ignore_errors=True)
    link = place.lab.link("management-b")
    link.impair(Impairment(delay_ms=200))
    try:
        async with open_host("ssh://hv2") as host:
            await host.ready(READY_DEADLINE_S)
            found = await examine_connection(host, "b")
    finally:
        link.heal()
    assert found[0].severity is Severity.WARNING
    assert re.match(r"hv2 answers after [\d.]+ s: a silence of node b's", found[0].sentence)
    nothing_is_left(place.lab)


def forget(place: Place) -> None:
    """End the pair, and remove what both machines know of its disks: the next test has new ones."""
    run_verb(["stop", "bad", "--force", "--yes"])
    for name in ("hv1", "hv2"):
        lasting = place.lab.machine(name).here(DISK).parents[1]
        for record in (*lasting.glob("disks/*"), *lasting.glob("images/*.generation")):
            record.unlink()


def test_a_guest_that_was_started_alone_is_not_copied_where_there_is_no_room(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images are there, as new as at a first start, and nothing was copied to hv2 yet."""
    with new_image("-o", "size=256k")(place) as text:
        img, small = place.builds("11.1").img, str(SMALL / DISK.name)
        place.run(str(img), "create", "-q", "-f", "qcow2", small, "512M")
        (file := place.folder / "alone.toml").write_text(text)
        try:
            assert run_verb(["start", str(file), "--no-protect"]) == 0
            assert run_verb(["reprotect", "bad"]) == 1
            assert run_verb(["stop", "bad", "--force", "--yes"]) == 0
        finally:
            forget(place)
    said = " ".join(capsys.readouterr().err.split())
    sentence = rf"{SMALL} on hv2 has [\d.]+ KiB of room, and the copy of disk0 needs [\d.]+ KiB\."
    assert re.search(sentence, said), said
    nothing_is_left(place.lab)


def test_what_is_given_up_with_a_machine_is_shown_and_ended_when_that_is_back(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := place.folder / "gone.toml").write_text(place.text)
    machine = place.lab.machine("hv2")

    def typed(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run_verb(words) == code, words
        said = capsys.readouterr()
        return " ".join(f"{said.out} {said.err}".split())

    try:
        typed("start", str(file))
        machine.crash()
        said = typed("stop", "bad", "--force", "--yes")
        assert "stays and names what may still run: `coloctl stop bad --force` ends it once" in said
        assert "`coloctl stop bad --force --without b` where that machine is gone for good" in said
        said = typed("stop", "bad", "--force", "--without", "b", "--yes")
        assert "(nothing else was left running; given up: the secondary on node b (process" in said
        said = typed("status")
        assert re.search(r"bad: The secondary on node b \(process \d+ on hv2\) was given up", said)
        machine.boot()
        said = typed("start", str(file))
        assert re.search(r"on hv2\) is gone \([a-z-]+\)\. Its disks count as diverged\.", said), (
            said
        )
        assert "given up" not in typed("status", "bad")
        typed("stop", "bad", "--force", "--yes")
    finally:
        if machine.state() is MachineState.OFF:
            machine.boot()
        forget(place)
    nothing_is_left(place.lab)
