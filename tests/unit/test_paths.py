"""Folders that another user made, can write or can replace are refused before they are trusted.

Goal: nothing that another local user prepared names a process that is killed, a file that is
written or a program that is run. Method: each folder of coloctl is made as such a user would.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.fakes import make_spec

from coloctl import paths, probe_cache
from coloctl.check import machine
from coloctl.check.finding import Severity
from coloctl.cli.verbs.status import list_pairs, status
from coloctl.control.daemon.spawn import claim
from coloctl.control.listener import listen
from coloctl.errors import PreconditionFailed
from coloctl.host.listen import listening
from coloctl.journal import Journal
from coloctl.pairfile import files

pytestmark = pytest.mark.unit

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give folders away")

FOLDERS: dict[str, tuple[str, Callable[[], Path]]] = {
    "state": ("COLOCTL_STATE_DIR", paths.state_dir),
    "cache": ("COLOCTL_CACHE_DIR", paths.cache_dir),
    "registry": ("COLOCTL_REGISTRY_DIR", paths.registry_dir),
    "config": ("COLOCTL_CONFIG_DIR", paths.config_dir),
}


@pytest.fixture(params=FOLDERS)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Callable[[], Path]]:
    variable, find = FOLDERS[request.param]
    monkeypatch.setenv(variable, str(tmp_path / "here"))
    return tmp_path / "here", find


def test_a_folder_that_is_not_there_or_ours_is_fine(
    place: tuple[Path, Callable[[], Path]],
) -> None:
    folder, find = place
    assert find() == folder
    folder.mkdir()
    for mode in (0o755, 0o775):  # the latter under a umask of 002, where groups are private
        folder.chmod(mode)
        if folder.stat().st_gid == os.geteuid() or mode == 0o755:
            assert find() == folder


@AS_ROOT
def test_another_users_folder_is_refused(place: tuple[Path, Callable[[], Path]]) -> None:
    folder, find = place
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(PreconditionFailed, match=f"belongs to user id {NOBODY}") as refused:
        find()
    assert refused.value.hint is not None and "COLOCTL_" in refused.value.hint


@AS_ROOT
def test_root_by_sudo_may_use_the_folders_of_the_user_that_it_was(
    place: tuple[Path, Callable[[], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in docs/ci.md: the cache is restored by the job's user, and coloctl runs by sudo."""
    folder, find = place
    folder.mkdir(mode=0o755)
    os.chown(folder, NOBODY, NOBODY)
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert find() == folder
    monkeypatch.setenv("SUDO_UID", "1000")
    with pytest.raises(PreconditionFailed, match="belongs to"):
        find()


@pytest.mark.parametrize(
    ("mode", "group"), [(0o777, -1), (0o702, -1), pytest.param(0o770, NOBODY, marks=AS_ROOT)]
)
def test_a_folder_that_others_can_write_is_refused(
    place: tuple[Path, Callable[[], Path]], mode: int, group: int
) -> None:
    folder, find = place
    folder.mkdir()
    os.chown(folder, -1, group)
    folder.chmod(mode)
    with pytest.raises(PreconditionFailed, match="can be written by others") as refused:
        find()
    assert refused.value.hint is not None and f"chmod go-w {folder}" in refused.value.hint


@AS_ROOT
def test_a_link_of_another_user_is_refused_and_a_link_of_ours_is_followed(
    place: tuple[Path, Callable[[], Path]], tmp_path: Path
) -> None:
    folder, find = place
    (tmp_path / "real").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "real")
    assert find() == folder
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(PreconditionFailed, match=f"symbolic link of user id {NOBODY}"):
        find()


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with pytest.raises(PreconditionFailed, match="cannot be made: File exists"):
        paths.make_private(tmp_path / "here")


def test_each_folder_that_is_made_is_private(tmp_path: Path) -> None:
    """A state folder that others may read gets a lock file of its own, which outlives the pair."""
    tmp_path.chmod(0o755)
    paths.make_private(tmp_path / "state" / "web" / "a")
    for folder in ("state", "state/web", "state/web/a"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700, folder
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("owner", "mode"), [(0, 0o777), pytest.param(NOBODY, 0o755, marks=AS_ROOT)]
)
def test_a_state_folder_that_others_can_replace_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, mode: int
) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    if owner:
        os.chown(above, owner, owner)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(above / "deep" / "state"))
    with pytest.raises(PreconditionFailed, match="can be replaced by others"):
        paths.state_dir()
    if not owner:
        above.chmod(0o1777)  # as /tmp: what is ours cannot be replaced there
        assert paths.state_dir()


def test_a_pairs_folder_is_never_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    (tmp_path / "s").mkdir()
    (tmp_path / "web").mkdir()
    (tmp_path / "s" / "web").symlink_to(tmp_path / "web")
    with pytest.raises(PreconditionFailed, match="symbolic link"):
        claim(make_spec())


@AS_ROOT
def test_every_verb_refuses_a_prepared_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal in it could name any process as the one to be killed."""
    folder = tmp_path / "s"
    (folder / "web").mkdir(parents=True)
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(folder))
    for prepared in (folder, folder / "web"):
        os.chown(prepared, NOBODY, NOBODY)
        with pytest.raises(PreconditionFailed, match="belongs to"):
            paths.control_socket("web")
        with pytest.raises(PreconditionFailed, match="belongs to"):
            claim(make_spec())
        os.chown(prepared, 0, 0)
    os.chown(folder, NOBODY, NOBODY)
    for verb in (status, list_pairs):
        said = CliRunner().invoke(verb, [])
        assert isinstance(said.exception, PreconditionFailed), said.output
    assert machine.state_dir().severity is Severity.ERROR


@AS_ROOT
def test_a_verdict_that_another_user_left_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "c"))
    probe_cache.remember("key", {"accel": "kvm"})
    assert probe_cache.recall("key") == {"accel": "kvm"}
    os.chown(tmp_path / "c", NOBODY, NOBODY)
    with pytest.raises(PreconditionFailed, match="belongs to"):
        probe_cache.recall("key")


def test_no_link_is_followed_in_the_place_of_a_journal(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "journal.jsonl").symlink_to(victim)
    with pytest.raises(PreconditionFailed):
        Journal(tmp_path / "journal.jsonl")
    assert victim.read_text() == "precious"


def test_the_limit_of_a_socket_path_is_one_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host, the control socket and the pair file refuse 108 bytes in the same words."""
    room = paths.UNIX_PATH_MAX - len(os.fsencode(tmp_path)) - 1
    fits, long = tmp_path / ("x" * room), tmp_path / ("x" * (room + 1))
    assert len(os.fsencode(fits)) == 107
    for make in (listening, listen):
        make(fits).close()
        fits.unlink()
        with pytest.raises(PreconditionFailed) as caught:
            make(long)
        assert caught.value.message == (
            f"The socket path {long} has 108 bytes; a unix socket address can have 107."
        )
        assert "COLOCTL_STATE_DIR" in (caught.value.hint or "")
    monkeypatch.setattr(paths, "pair_dir", lambda _: long.parent / ("y" * 90))
    (found,) = (one for one in files.missing_files(make_spec()) if one.key == "name")
    assert "a unix socket address can have 107." in found.message
