"""A build appears whole, is made only once, and is mended when it loses a file."""

from __future__ import annotations

import platform
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from coloctl.errors import ProvisionError, UnsupportedQEMU, UsageError
from coloctl.lab import apt, qemu
from coloctl.lab.progress import Progress, Report, silent

pytestmark = pytest.mark.unit

#: Stands in for the loader of a build: says what it was asked to start.
LOADER = """#!/bin/sh
case "$*" in *--version) echo "QEMU emulator version 11.1.3 (Debian)";; esac
echo "modules $QEMU_MODULE_DIR"
for word; do echo "<$word>"; done
"""


class Debian:
    """Stands in for the archive: counts what is fetched, and unpacks a build made of scripts."""

    def __init__(self, folder: Path) -> None:
        self.fetched: list[str] = []
        self.discarded = 0
        self.loader = LOADER
        self.breaks: BaseException | None = None
        self.deb = folder / "qemu_1_all.deb"

    def fetch(self, suite: str, packages: Sequence[str], *, report: Report = silent) -> list[Path]:
        self.fetched.append(suite)
        return [self.deb]

    def unpack(self, debs: Sequence[Path], prefix: Path, *, report: Report = silent) -> None:
        loader = prefix / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        loader.parent.mkdir(parents=True)
        loader.write_text(self.loader)
        loader.chmod(0o755)
        if self.breaks:
            raise self.breaks
        for firmware in ("a", "b"):
            (prefix / firmware).write_text(firmware)

    def discard(self, debs: Sequence[Path]) -> None:
        self.discarded += 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A blank in the path shows whether the scripts quote.
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "the cache"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path / "the cache/qemu"


@pytest.fixture
def debian(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    archive = Debian(tmp_path)
    for name in ("fetch", "unpack", "discard"):
        monkeypatch.setattr(apt, name, getattr(archive, name))
    return archive


def test_nothing_is_found_before_it_is_provided_and_looking_leaves_no_trace(home: Path) -> None:
    assert qemu.find("11.1") is None
    assert not home.exists()


def test_a_build_is_provided_from_its_suite_and_found_afterwards(debian: Debian) -> None:
    build = qemu.provide("11.1")
    assert (build.name, build.suite, build.version) == ("11.1", "trixie-backports", "11.1.3")
    assert qemu.find("11.1") == build == qemu.provide("11.1")
    assert debian.fetched == ["trixie-backports"]
    assert debian.discarded == 1


def test_the_programs_start_through_the_builds_own_loader(debian: Debian, home: Path) -> None:
    build = qemu.provide("7.2")
    root = home / "7.2/root"
    said = subprocess.run(
        [build.binary, "-name", "two words"], capture_output=True, text=True, check=True
    ).stdout
    assert f"modules {root}/usr/lib/x86_64-linux-gnu/qemu" in said
    assert f"<{root}/usr/bin/qemu-system-x86_64>" in said
    assert f"<-L>\n<{root}/usr/share/qemu>" in said
    assert said.endswith("<-name>\n<two words>\n")
    image = subprocess.run([build.img, "info"], capture_output=True, text=True, check=True).stdout
    assert image.endswith(f"<{root}/usr/bin/qemu-img>\n<info>\n")


@pytest.mark.parametrize("harm", ["lost", "shorter", "no record", "moved"])
def test_a_build_that_is_no_longer_whole_is_made_anew(
    debian: Debian, home: Path, harm: str
) -> None:
    build = qemu.provide("10.0")
    file = home / "10.0/root/a"
    if harm == "lost":
        file.unlink()
    elif harm == "shorter":
        file.write_text("")
    elif harm == "no record":
        (home / "10.0/build.json").write_text("{")
    else:
        record = home / "10.0/build.json"
        record.write_text(record.read_text().replace("/qemu/10.0", "/elsewhere/10.0"))
    assert qemu.find("10.0") is None
    assert qemu.provide("10.0") == build
    assert len(debian.fetched) == 2


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), ProvisionError("disk full")])
def test_an_interruption_leaves_nothing_half(
    debian: Debian, home: Path, trouble: BaseException
) -> None:
    debian.breaks = trouble
    with pytest.raises(type(trouble)):
        qemu.provide("11.1")
    assert [path.name for path in home.iterdir()] == ["11.1.lock"]
    assert debian.discarded == 0, "what was downloaded is kept for the next try"


def test_a_build_that_does_not_run_is_refused(debian: Debian, home: Path) -> None:
    debian.loader = "#!/bin/sh\necho 'cannot execute' >&2\nexit 127\n"
    with pytest.raises(ProvisionError, match="does not run here: cannot execute"):
        qemu.provide("11.1")
    assert qemu.find("11.1") is None


def test_providers_at_the_same_time_make_one_build(debian: Debian) -> None:
    builds: list[qemu.Build] = []
    seen: list[Progress] = []

    def provide() -> None:
        builds.append(qemu.provide("11.1", report=seen.append))

    threads = [threading.Thread(target=provide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 4
    assert len(set(builds)) == 1
    assert debian.fetched == ["trixie-backports"]


def test_names_that_do_not_exist_are_answered_with_those_that_do(home: Path) -> None:
    with pytest.raises(UsageError, match=r"no QEMU build named '9\.9'") as caught:
        qemu.provide("9.9")
    assert "11.1" in (caught.value.hint or "")


def test_a_machine_of_another_kind_is_told_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(ProvisionError, match="this machine is aarch64"):
        qemu.provide("11.1")


def test_a_colon_in_the_path_is_refused_before_anything_is_fetched(
    debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "a:b"))
    with pytest.raises(ProvisionError, match="colon"):
        qemu.provide("11.1")
    assert not debian.fetched


def test_without_a_system_qemu_the_packages_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert qemu.find("system") is None
    with pytest.raises(ProvisionError) as caught:
        qemu.provide("system")
    assert "qemu-system-x86" in (caught.value.hint or "")


class TestChoose:
    @pytest.fixture(autouse=True)
    def system(self, debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in ("qemu-system-x86_64", "qemu-img"):
            (tools / tool).write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
            (tools / tool).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def test_the_systems_qemu_comes_first_with_every_accelerator(self, debian: Debian) -> None:
        build, accel = qemu.choose(lambda build, accel: accel == "tcg", ["kvm", "tcg"])
        assert (build.name, build.version, accel) == ("system", "7.2.22", "tcg")
        assert not debian.fetched

    def test_the_newest_build_helps_where_the_systems_cannot(self, debian: Debian) -> None:
        build, accel = qemu.choose(lambda build, accel: build.name != "system", ["kvm", "tcg"])
        assert (build.name, accel) == ("11.1", "kvm")

    def test_when_nothing_holds_colo_the_answer_says_what_was_tried(self) -> None:
        asked: list[tuple[str, str]] = []

        def works(build: qemu.Build, accel: str) -> bool:
            asked.append((build.name, accel))
            return False

        with pytest.raises(UnsupportedQEMU) as caught:
            qemu.choose(works, ["kvm", "tcg"])
        assert asked == [(name, accel) for name in ("system", "11.1") for accel in ("kvm", "tcg")]
        assert caught.value.hint
