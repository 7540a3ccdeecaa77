"""A pair's folder that is removed while its supervisor lives is made anew, and verbs find it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import fake_state

from coloctl import paths
from coloctl.control.client import ControlClient
from coloctl.control.daemon.home import Home
from coloctl.control.listener import listen
from coloctl.control.server import ControlServer
from coloctl.journal import replay
from coloctl.model import event
from coloctl.supervisor.started import Started, remember, remembered
from coloctl.supervisor.state import PairState

pytestmark = pytest.mark.unit

NAME = "web"


@asynccontextmanager
async def served(folder: Path, source: Path) -> AsyncIterator[tuple[Home, PairState]]:
    """A supervisor without a pair, at its socket in ``folder``."""
    async with fake_state(folder) as state:
        state.pair_file = replace(state.pair_file, source=source)
        remember(folder, Started(state.pair_file))
        server = ControlServer(listen(paths.control_socket(NAME)), {}, version="1.2.3")
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        try:
            yield Home(state, state.pending_records._journal, server), state
        finally:
            await server.aclose()
            await serving


def connects() -> bool:
    with ControlClient.connect(paths.control_socket(NAME), 5) as client:
        return bool(client.execute("query-version", 5))


def play(folder: Path, source: Path, deed: Callable[[Path], object]) -> list[str]:
    """What was made anew after ``deed``; nothing is missing then."""

    async def check() -> list[str]:
        async with served(folder, source) as (home, state):
            assert home.look() == []
            deed(folder)
            made = home.look()
            assert home.look() == [] and await asyncio.to_thread(connects)
            assert folder.stat().st_mode & 0o777 == 0o700
            assert (folder / "pair.toml").read_text() == "as it was"
            assert (folder / "source").readlink() == source
            assert remembered(folder) == Started(state.pair_file)
            for name in ("pair.toml", "started.json"):
                assert (folder / name).stat().st_mode & 0o777 == 0o600
            assert event.last_settings(replay(folder / "journal.jsonl").records)[event.SOURCE]
            assert not made or "made again" in state.view().reason
            return made

    return asyncio.run(check())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    return paths.make_private(paths.pair_dir(NAME))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "web.toml"
    source.write_text("as it was")
    return source


def test_a_folder_that_is_whole_is_left_alone(folder: Path, source: Path) -> None:
    assert play(folder, source, lambda _: None) == []


def test_a_removed_folder_is_made_anew(folder: Path, source: Path) -> None:
    def removed(folder: Path) -> None:
        source.write_text("changed since")  # the copy is that of the start
        shutil.rmtree(folder.parent)

    everything = ["folder", "journal", "pair.toml", "started.json", "control socket"]
    assert play(folder, source, removed) == everything


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("journal.jsonl", "journal"),
        ("control.sock", "control socket"),
        ("source", "pair.toml"),
        ("started.json", "started.json"),
    ],
)
def test_a_part_that_is_gone_is_made_anew(folder: Path, source: Path, name: str, told: str) -> None:
    assert play(folder, source, lambda folder: (folder / name).unlink()) == [told]


def test_a_socket_that_another_program_bound_there_is_no_supervisor_of_ours(
    folder: Path, source: Path
) -> None:
    def replaced(folder: Path) -> None:
        path = folder / "control.sock"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as dead:  # it was bound, and nothing serves it
            dead.bind(str(path))

    assert play(folder, source, replaced) == ["control socket"]
