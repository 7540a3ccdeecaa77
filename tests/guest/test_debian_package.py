"""The Debian package in a bare Debian 13: installed, used, removed, and nothing is left.

Method: a root from debootstrap, kept in the cache for the next run and used as the lower layer of
an overlay; the package is built from this checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl import pairfile
from coloctl.errors import ProvisionError
from coloctl.lab import apt
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import silent
from coloctl.paths import cache_dir

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
    pytest.mark.timeout(600),
]

CHECKOUT = Path(__file__).parents[2]
SUITE, PYTHON = "trixie", "3.13"
#: What a machine with Debian has before coloctl is installed, with Python and man for this test.
PACKAGES = ("python3", "man-db")
#: Everything that debootstrap or a maintainer script starts ends with the command, also if killed.
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def bare_root() -> Path:
    """A bare Debian 13, built once."""
    home = cache_dir() / "bare" / SUITE
    home.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(home.with_suffix(".lock"), "a bare Debian", silent):
        if not (home / "usr/bin/python3").exists():
            staging = home.with_suffix(".new")
            shutil.rmtree(staging, ignore_errors=True)
            tools = staging / "tools"
            apt.unpack(apt.fetch_only(SUITE, ["debootstrap"]), tools)
            subprocess.run(
                [*APART, "sh", str(tools / "usr/sbin/debootstrap"), "--variant=minbase",
                 f"--include={','.join(PACKAGES)}", SUITE, str(staging / "root"),
                 apt.mirrors()[0]],
                check=True, capture_output=True,
                env={**os.environ, "DEBOOTSTRAP_DIR": str(tools / "usr/share/debootstrap")},
            )  # fmt: skip
            shutil.rmtree(home, ignore_errors=True)
            (staging / "root").rename(home)
            shutil.rmtree(staging)
    return home


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """That Debian, with whatever this test changes kept apart."""
    try:
        lower = bare_root()
    except (ProvisionError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no bare Debian: {getattr(error, 'stderr', error)}")
    place = tmp_path_factory.mktemp("debian")
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    layers = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", layers, str(place / "root")], check=False
    )
    if mounted.returncode:
        pytest.skip("the filesystem of the temporary folder takes no overlay")
    yield place / "root"
    subprocess.run(["umount", str(place / "root")], check=True)


def inside(root: Path, *words: str, code: int = 0) -> str:
    """What a command in that Debian prints; it must end with ``code``."""
    done = subprocess.run(
        [*APART, f"--root={root}", "--", "/usr/bin/env", "-i", "HOME=/root", "LC_ALL=C.UTF-8",
         "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("deb")
    built = subprocess.run(
        [sys.executable, str(CHECKOUT / ".ci/deb"), "--python", PYTHON, "--output", str(output),
         "--level", "1"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    package = Path(built.stdout.strip())
    shutil.copy(package, root / "root/coloctl.deb")
    inside(root, "dpkg", "-i", "/root/coloctl.deb")
    return root


def test_the_verbs_work_there(installed: Path) -> None:
    assert inside(installed, "coloctl", "--version") == "coloctl 0.1.0\n"
    assert inside(installed, "coloctl", "list") == "No pair runs here.\n"
    assert "has all" in inside(installed, "coloctl", "schema", "check", "11.1")
    assert "nothing wrong" in inside(installed, "coloctl", "chaos", "check")
    inside(installed, "coloctl", "certs", "init", "hv1=10.66.0.1")
    assert "addresses 10.66.0.1" in inside(installed, "coloctl", "certs", "show")
    assert "no qemu-system-x86_64 on PATH" in inside(installed, "coloctl", "doctor", code=3)


def test_pages_completions_and_the_unit_are_where_debian_looks(installed: Path) -> None:
    assert "coloctl-start" in inside(installed, "man", "--where", "coloctl-start")
    inside(installed, "man", "--where", "5", "coloctl.toml")
    completion = "usr/share/bash-completion/completions/coloctl"
    words = f". /{completion}; COMP_WORDS=(coloctl sta); COMP_CWORD=1; _coloctl_completion coloctl"
    shown = inside(installed, "bash", "-c", f'{words}; echo "${{COMPREPLY[@]}}"')
    assert shown.split() == ["start", "status"]
    unit = (installed / "usr/lib/systemd/system/coloctl@.service").read_text()
    assert "ExecStart=/usr/bin/coloctl run /etc/coloctl/%i.toml" in unit


def test_qemu_has_an_account_of_its_own(installed: Path) -> None:
    entry = inside(installed, "getent", "passwd", "coloctl-qemu").strip().split(":")
    assert (entry[5], entry[6]) == ("/nonexistent", "/usr/sbin/nologin")
    assert inside(installed, "id", "-Gn", "coloctl-qemu").split() == ["coloctl-qemu"]
    inside(installed, "sh", "/var/lib/dpkg/info/coloctl.postinst", "configure")  # as at an upgrade


def test_its_example_pair_files_are_complete(installed: Path) -> None:
    examples = installed / "usr/share/doc/coloctl/examples"
    found = {file.name: pairfile.load(file) for file in examples.iterdir()}
    assert {*found} == {"one-machine.toml", "two-machines.toml"}
    assert found["two-machines.toml"].encrypted()


def test_nothing_of_the_building_machine_is_in_it(installed: Path) -> None:
    found = subprocess.run(
        ["grep", "-rlF", str(CHECKOUT), str(installed / "usr/lib/coloctl"),
         str(installed / "usr/bin/coloctl")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout == ""


def test_it_goes_as_it_came(installed: Path) -> None:
    inside(installed, "dpkg", "--purge", "coloctl")
    for gone in ("usr/lib/coloctl", "usr/bin/coloctl", "usr/share/doc/coloctl"):
        assert not (installed / gone).exists(), gone
