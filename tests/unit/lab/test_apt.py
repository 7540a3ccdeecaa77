"""Packages come from this machine's mirrors, whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from coloctl.errors import ProvisionError
from coloctl.lab import apt
from coloctl.lab.progress import Progress

pytestmark = pytest.mark.unit

SOURCES = """\
Types: deb deb-src
URIs: http://first.example/debian http://second.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib

Types: deb
Enabled: no
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
"""

LIST = """\
deb http://vendor.example/tools bookworm main
deb [arch=amd64] http://oneline.example/debian stable main  # a comment
deb http://vendor.example/other vendor-bookworm main
deb http://firmware.example/debian bookworm non-free
deb cdrom:[A disc]/ bookworm main
# deb http://commented.example/debian bookworm main
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that apt takes for /etc/apt/sources.list.d."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{parts}";\n'
        f'Dir::State::Lists "{tmp_path}";\nAPT::Architecture "amd64";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    return parts


class TestMirrors:
    def test_both_formats_are_read_and_only_enabled_main_of_debian_counts(
        self, sources: Path
    ) -> None:
        (sources / "a.sources").write_text(SOURCES)
        (sources / "b.list").write_text(LIST)
        found = apt.mirrors()
        assert set(found) == {
            "http://first.example/debian",
            "http://second.example/debian",
            "http://oneline.example/debian",
            "http://vendor.example/tools",
        }

    def test_others_who_use_debians_suite_names_are_asked_last(self, sources: Path) -> None:
        (sources / "b.list").write_text(LIST)
        assert apt.mirrors()[-1] == "http://vendor.example/tools"

    def test_a_machine_without_debian_is_told_so(self, sources: Path) -> None:
        (sources / "b.list").write_text("deb http://vendor.example/x focal main\n")
        with pytest.raises(ProvisionError, match="no source with Debian's main archive") as caught:
            apt.fetch("trixie", ["seabios"])
        assert caught.value.hint


#: Stands in for apt-get: two mirrors, of which only "good" answers; two packages in its archive.
FAKE_APT = """#!/bin/sh
case "$*" in
"update --print-uris")
  for m in bad good; do
    echo "'http://$m.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0"
  done; exit;;
*update)
  echo "$APT_CONFIG" >> @/log
  if grep -q good.example "$(dirname "$APT_CONFIG")/sources.list" && [ ! -e @/offline ]; then
    touch @/lists; exit
  fi
  echo "E: Could not resolve host" >&2; exit 100;;
*--print-uris*)
  grep -q good.example "$(dirname "$APT_CONFIG")/sources.list" || exit 100
  [ -e @/lists ] || { echo "E: Unable to locate package a" >&2; exit 100; }
  echo "'http://good.example/a.deb' a_1%3a1_amd64.deb 4 SHA256:x"
  echo "'http://good.example/b.deb' b_2_all.deb 6 SHA256:x"; exit;;
esac
[ -e @/damage ] && { echo "E: Failed to fetch b.deb  Connection reset" >&2; exit 100; }
[ -e @/short ] && { printf ab > b_2_all.deb; exit; }
printf 1234 > a_1%3a1_amd64.deb; printf 123456 > b_2_all.deb
echo "downloaded $*" >> @/log
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "apt-get"
    script.write_text(FAKE_APT.replace("@", str(tools)))
    script.chmod(0o755)
    config = tools / "apt-config"
    config.write_text("#!/bin/sh\necho 'Acquire::http::Proxy \"http://proxy.example\";'\n")
    config.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


class TestFetch:
    def test_the_next_mirror_helps_where_the_first_does_not_answer(self, fake: Path) -> None:
        debs = apt.fetch("trixie", ["a"])
        assert [deb.name for deb in debs] == ["a_1%3a1_amd64.deb", "b_2_all.deb"]
        assert all(deb.is_file() for deb in debs)

    def test_what_is_here_is_not_downloaded_again(self, fake: Path) -> None:
        first = apt.fetch("trixie", ["a"])
        assert apt.fetch("trixie", ["a"]) == first
        assert (fake / "log").read_text().count("downloaded") == 1

    def test_offline_the_packages_that_are_here_suffice(self, fake: Path) -> None:
        first = apt.fetch("trixie", ["a"])
        (fake / "offline").touch()
        assert apt.fetch("trixie", ["a"]) == first

    @pytest.mark.parametrize("trouble", ["damage", "short"])
    def test_a_download_that_breaks_off_is_an_error_and_the_next_try_mends_it(
        self, fake: Path, trouble: str
    ) -> None:
        (fake / trouble).touch()
        with pytest.raises(ProvisionError) as caught:
            apt.fetch("trixie", ["a"])
        assert caught.value.hint
        (fake / trouble).unlink()
        assert len(apt.fetch("trixie", ["a"])) == 2

    def test_proxies_of_the_machine_are_kept_and_its_hooks_are_not(
        self, fake: Path, cache: Path
    ) -> None:
        apt.fetch("trixie", ["a"])
        config = (cache / "apt/trixie/apt.conf").read_text()
        assert 'Acquire::http::Proxy "http://proxy.example";' in config
        assert 'Dir::Etc::Parts "/dev/null";' in config

    def test_a_backport_stands_beside_its_release_and_is_asked_for_by_name(
        self, fake: Path, cache: Path
    ) -> None:
        apt.fetch("trixie-backports", ["a"])
        lines = (cache / "apt/trixie-backports/sources.list").read_text().splitlines()
        assert [line.split()[-2] for line in lines] == ["trixie", "trixie-backports"]
        assert "-t trixie-backports" in (fake / "log").read_text()

    def test_discarding_one_wish_leaves_another(self, fake: Path) -> None:
        one, other = apt.fetch("trixie", ["a"]), apt.fetch("trixie", ["b"])
        apt.discard(one)
        assert not any(deb.exists() for deb in one)
        assert all(deb.exists() for deb in other)

    def test_progress_ends_with_all_bytes(self, fake: Path) -> None:
        seen: list[Progress] = []
        apt.fetch("trixie", ["a"], report=seen.append)
        assert (seen[-1].done_bytes, seen[-1].total_bytes) == (10, 10)

    def test_a_second_fetch_waits_for_the_first(self, fake: Path) -> None:
        threads = [threading.Thread(target=apt.fetch, args=("trixie", ["a"])) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (fake / "log").read_text().count("downloaded") == 1

    def test_old_keys_are_named_as_such(self, fake: Path) -> None:
        script = fake / "apt-get"
        text = "W: GPG error: NO_PUBKEY 6ED0E7B82643E131\nE: The repository is not signed."
        script.write_text(script.read_text().replace("E: Could not resolve host", text))
        (fake / "offline").touch()
        with pytest.raises(ProvisionError, match="not signed") as caught:
            apt.fetch("trixie", ["a"])
        assert "debian-archive-keyring" in (caught.value.hint or "")

    def test_a_cache_that_cannot_be_written_is_one_sentence(
        self, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "file"))
        with pytest.raises(ProvisionError, match="cannot be written") as caught:
            apt.fetch("trixie", ["a"])
        assert "COLOCTL_CACHE_DIR" in (caught.value.hint or "")


def make_deb(folder: Path, name: str, files: dict[str, tuple[str, int]]) -> Path:
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    for path, (text, mode) in files.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
    deb = folder / f"{name}_1_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(deb)]
    subprocess.run(command, check=True, capture_output=True)
    return deb


class TestUnpack:
    def test_the_prefix_holds_all_packages_and_nothing_older(self, tmp_path: Path) -> None:
        one = make_deb(tmp_path, "one", {"usr/lib/one": ("1", 0o644)})
        two = make_deb(tmp_path, "two", {"usr/lib/two": ("2", 0o644)})
        prefix = tmp_path / "prefix"
        prefix.mkdir()
        (prefix / "old").touch()
        apt.unpack([one, two], prefix)
        files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
        assert files == {"usr/lib/one", "usr/lib/two"}

    def test_no_set_user_id_and_no_manual_survives(self, tmp_path: Path) -> None:
        deb = make_deb(
            tmp_path,
            "su",
            {"usr/bin/su": ("#!", 0o4755), "usr/share/doc/su/copyright": ("c", 0o644)},
        )
        apt.unpack([deb], tmp_path / "prefix")
        mode = (tmp_path / "prefix/usr/bin/su").stat().st_mode
        assert mode & stat.S_IXUSR
        assert not mode & (stat.S_ISUID | stat.S_ISGID)
        assert not (tmp_path / "prefix/usr/share/doc/su").exists()

    def test_a_damaged_package_leaves_everything_as_it_was(self, tmp_path: Path) -> None:
        good = make_deb(tmp_path, "good", {"usr/lib/good": ("1", 0o644)})
        bad = tmp_path / "bad_1_all.deb"
        bad.write_bytes(good.read_bytes()[:300])
        prefix = tmp_path / "prefix"
        prefix.mkdir()
        (prefix / "old").touch()
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ProvisionError, match=r"bad_1_all\.deb could not be unpacked"):
            apt.unpack([good, bad], prefix)
        assert [path.name for path in prefix.iterdir()] == ["old"]
        assert sorted(tmp_path.iterdir()) == before
