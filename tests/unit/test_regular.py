"""Files of a folder in which a less trusted user may put what it likes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from coloctl.cli.bundling import _tail
from coloctl.host.local_files import read_log
from coloctl.host.process import tail
from coloctl.host.records import LogPiece
from coloctl.regular import open_regular

SECRET = "what only root may read\n"


def _link(path: Path) -> None:
    aim = path.with_name("secret")
    aim.write_text(SECRET)
    path.symlink_to(aim)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


KINDS = pytest.mark.parametrize("put", [_link, _pipe, _socket, Path.mkdir])


@KINDS
def test_nothing_but_a_file_is_opened(put, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    log = tmp_path / "console.log"
    put(log)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError):
        open_regular(log)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@KINDS
def test_no_reader_of_a_log_shows_what_it_leads_to(put, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    log = tmp_path / "console.log"
    put(log)
    assert read_log(log, 0, 100) == LogPiece(0, b"", 0)
    for read in (lambda: tail(log), lambda: _tail(log, 100)):
        with pytest.raises(OSError):
            read()


def test_a_file_is_read(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text(SECRET)
    assert read_log(log, 0, 100).data == SECRET.encode()
    assert tail(log) == SECRET.strip()
    assert _tail(log, 100) == (SECRET, 0)
