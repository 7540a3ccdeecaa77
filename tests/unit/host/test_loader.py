"""The loader keeps the agent by its digest, in a folder that only its user can change."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

from coloctl.host.remote import loader, parcel

pytestmark = pytest.mark.unit

#: A program in the place of the agent's, which shows that it was started.
AGENT = "import sys\nprint('started from', sys.path[0].rpartition('/')[2].partition('.')[0])\n"


@cache
def program(text: str = AGENT) -> bytes:
    """Pack ``text`` as the agent's main module; once, because a zip records its time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for folder in ("coloctl", "coloctl/host", "coloctl/host/agent"):
            archive.writestr(f"{folder}/__init__.py", "")
        archive.writestr("coloctl/host/agent/main.py", text)
    return packed.getvalue()


class Loading:
    """One run of the loader, as ssh starts it."""

    def __init__(self, cache: Path, state: Path | None = None) -> None:
        env = {"COLOCTL_CACHE_DIR": str(cache), "COLOCTL_STATE_DIR": str(state or cache)}
        self.run = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", Path(loader.__file__).read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
        )

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.run.kill()
        self.run.communicate()

    def line(self) -> str:
        assert self.run.stdout is not None
        return self.run.stdout.readline().decode().strip()

    def send(self, data: bytes) -> None:
        assert self.run.stdin is not None
        self.run.stdin.write(data)
        self.run.stdin.flush()

    def ask(self, content: bytes) -> str:
        """Name the program, and return the answer."""
        assert self.line().startswith("COLOCTL-LOADER 1 3.")
        self.send(f"{hashlib.sha256(content).hexdigest()} {len(content)}\n".encode())
        return self.line()

    def load(self, content: bytes) -> str:
        """Name the program, send it where it is wanted, and return the last line."""
        if (answer := self.ask(content)) != "COLOCTL-WANT":
            assert answer == "COLOCTL-HAVE"
        else:
            self.send(content)
        return self.line()


def kept(home: Path) -> list[str]:
    """Return the names in the folder of programs, without those compiled from one of them."""
    names = sorted(path.name for path in (home / "agent").iterdir())
    zips = [name for name in names if not name.endswith(".pyz")]
    assert {name.partition(".")[0] for name in names} == {Path(name).stem for name in zips}
    return zips


def twins(home: Path) -> list[Path]:
    """Return the compiled programs."""
    return sorted((home / "agent").glob("*.pyz"))


def name_of(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}.zip"


def test_its_text_is_read_by_python_3_6() -> None:
    ast.parse(Path(loader.__file__).read_text(), feature_version=(3, 6))


def test_an_old_python_reports_its_version_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    loader.main()
    assert capfd.readouterr().out == "COLOCTL-PYTHON 3.9.2\n"


def test_a_program_is_sent_once_and_started_from_where_it_is_kept(tmp_path: Path) -> None:
    home = tmp_path / "cache"
    for answer in ("COLOCTL-WANT", "COLOCTL-HAVE"):
        with Loading(home) as loading:
            assert loading.ask(program()) == answer
            if answer == "COLOCTL-WANT":
                loading.send(program())
            assert loading.line() == f"started from {Path(name_of(program())).stem}"
    assert kept(home) == [name_of(program())]
    file = home / "agent" / name_of(program())
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_program_is_compiled_once(tmp_path: Path) -> None:
    with Loading(tmp_path) as loading:
        loading.load(program())
    (twin,) = twins(tmp_path)
    began = twin.stat()
    assert began.st_mode & 0o777 == 0o600
    with zipfile.ZipFile(twin) as archive:
        assert "coloctl/host/agent/main.pyc" in archive.namelist()
        assert archive.read("coloctl/host/agent/main.py").decode() == AGENT
    with Loading(tmp_path) as loading:
        loading.load(program())
    assert (twins(tmp_path), twin.stat().st_mtime_ns) == ([twin], began.st_mtime_ns)


def test_what_was_compiled_is_what_runs(tmp_path: Path) -> None:
    """The module that Python finds is the compiled one, not the source beside it."""
    where = program("print(__spec__.cached or __spec__.loader.get_filename(__spec__.name))\n")
    with Loading(tmp_path) as loading:
        assert loading.load(where).endswith("/coloctl/host/agent/main.pyc")


@pytest.mark.parametrize("other", [b"", b"damaged", program("print('another')\n")])
def test_a_compiled_program_that_is_damaged_is_made_again(tmp_path: Path, other: bytes) -> None:
    with Loading(tmp_path) as loading:
        loading.load(program())
    (twin,) = twins(tmp_path)
    sound = twin.read_bytes()
    twin.write_bytes(other)
    with Loading(tmp_path) as loading:
        assert loading.load(program()) == f"started from {Path(name_of(program())).stem}"
    assert any(one.read_bytes()[:2] == sound[:2] for one in twins(tmp_path))


def test_a_damaged_program_in_the_cache_is_replaced(tmp_path: Path) -> None:
    with Loading(tmp_path) as loading:
        loading.load(program())
    (tmp_path / "agent" / name_of(program())).write_bytes(program("print('another')\n"))
    with Loading(tmp_path) as loading:
        assert loading.load(program()) == f"started from {Path(name_of(program())).stem}"
    assert (tmp_path / "agent" / name_of(program())).read_bytes() == program()


def test_a_program_that_comes_damaged_is_neither_kept_nor_started(tmp_path: Path) -> None:
    with Loading(tmp_path) as loading:
        assert loading.ask(program()) == "COLOCTL-WANT"
        loading.send(program()[:-1] + b"x")
        assert loading.line() == "COLOCTL-NOROOM the program came damaged"
    assert not (tmp_path / "agent").exists()


def test_a_cache_that_cannot_be_written_is_replaced_by_the_state_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with Loading(blocked, tmp_path / "state") as loading:
        assert loading.load(program()) == f"started from {Path(name_of(program())).stem}"
    assert kept(tmp_path / "state") == [name_of(program())]


def test_without_any_room_each_folder_is_named_with_its_reason(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with Loading(blocked) as loading:
        answer = loading.load(program())
    assert answer.startswith(f"COLOCTL-NOROOM {blocked}/agent: Not a directory; ")


def test_a_folder_that_others_can_change_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "agent").mkdir(parents=True)
    (shared / "agent").chmod(0o777)
    (shared / "agent" / name_of(program())).write_bytes(program())
    with Loading(shared, tmp_path / "state") as loading:
        assert loading.load(program()) == f"started from {Path(name_of(program())).stem}"
    assert kept(tmp_path / "state") == [name_of(program())]


def test_three_programs_are_kept_and_the_draft_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    programs = [program(f"print('program {n}')\n") for n in range(5)]
    with Loading(tmp_path) as loading:
        loading.load(programs[0])
    (tmp_path / "agent" / "x.999999999.draft").write_text("")
    for n, content in enumerate(programs):
        with Loading(tmp_path) as loading:
            assert loading.load(content) == f"program {n}"
            moment = 1_000_000 + n  # the times of five starts in a row could be equal
            os.utime(tmp_path / "agent" / name_of(content), (moment, moment))
    assert kept(tmp_path) == sorted(name_of(content) for content in programs[2:])


def test_a_request_that_is_cut_ends_the_loader(tmp_path: Path) -> None:
    with Loading(tmp_path) as loading:
        assert loading.ask(program()) == "COLOCTL-WANT"
        loading.send(program()[:10])
        assert loading.run.communicate() == (b"", None)
        assert loading.run.returncode == 0


def test_the_parcel_is_the_same_bytes_from_the_same_sources() -> None:
    packed = parcel.parcel()
    parcel.parcel.cache_clear()
    assert parcel.parcel() == packed
    assert hashlib.sha256(packed.content).hexdigest() == packed.digest
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
