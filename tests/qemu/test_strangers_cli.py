"""Another local user against a pair started by the command: what lies and listens there."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.smallpair import write_small_pair
from support.stranger import TAKE, stranger
from test_cli_pair import NAME, Operator, build, processes_of

from coloctl import paths
from coloctl.lab import qemu

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="another user takes root to become"),
]

__all__ = ["build"]

#: Tries to read, to list, to change and to lock each path.
TOUCH = """
def tried(what, deed):
    try:
        deed()
        say(where=where, got=what)
    except OSError as error:
        say(where=where, got=False, why=str(error))

for where in given:
    tried("read", lambda: open(where, "rb").read(1))
    tried("list", lambda: os.listdir(where))
    tried("write", lambda: open(where, "r+b"))
    tried("remove", lambda: os.rename(where, where + ".gone"))
    tried("lock", lambda: fcntl.flock(os.open(where, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB))
say(done=True)
hold()
"""

#: Opens many connections to an HTTP server: some say nothing, some half of a request, some all.
SCRAPE = """
held, answers = [], 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    for text in (b"", b"GET /metr", b"GET /metrics HTTP/1.0\\r\\n\\r\\n"):
        try:
            sock = connect(given[0])
            sock.sendall(text)
            held.append(sock)
        except OSError:
            pass
    held = held[-300:]
say(connections=len(held), done=True)
hold()
"""


@pytest.fixture
def operator(build: qemu.Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    """A pair whose state folder lies where everybody may look."""
    folder = Path(tempfile.mkdtemp(prefix="coloctl-t-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "s").mkdir(mode=0o755)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    operator = Operator(write_small_pair(folder / f"{NAME}.toml", build))
    try:
        yield operator
        if paths.pair_dir(NAME).exists():
            operator.type("stop", NAME, "--force", "--yes")
        assert not processes_of(folder)
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_stranger_gets_nothing_of_state_control_and_monitors_and_stops_nothing(
    operator: Operator,
) -> None:
    """It has the state folder's lock, tries all that lies there, and crowds the metrics."""
    port = free_port()
    folder = paths.pair_dir(NAME)
    with ExitStack() as there:
        lock = there.enter_context(stranger(TOUCH, [str(folder.parent)]))
        assert [one["got"] for one in lock if one["got"]] == ["list", "lock"]
        operator.start("--metrics", f"127.0.0.1:{port}")
        assert operator.view()["protection"] == "colo"

        there_too = [str(path) for path in [folder, *folder.rglob("*")]]
        sockets = [path for path in there_too if Path(path).is_socket()]
        assert len(sockets) >= 6, "control, two monitors of each, and the export"
        for program, given in ((TAKE, sockets), (TOUCH, there_too)):
            said = there.enter_context(stranger(program, given))
            assert len(said) >= len(given)
            assert [one for one in said if one["got"]] == []

        address = ["127.0.0.1", port]
        there.enter_context(stranger(SCRAPE, [address], seconds=5.0))
        before = operator.view()
        assert (before["protection"], before["generation"]) == ("colo", 0)
        assert operator.type("checkpoint", NAME).stdout.startswith("Checkpoint ")
        operator.type("failover", NAME, "--yes")
        operator.until(lambda: operator.view()["protection"] == "unprotected")
        assert operator.view()["generation"] == 1
        operator.type("stop", NAME, "--force", "--yes")
