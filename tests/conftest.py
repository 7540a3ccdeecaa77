"""What every test may count on: the order of kinds, root where one is needed, QEMU, a clean end.

The presence of this file also puts its folder on the path, so that tests import their helpers.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support import house
from support.leaks import Begun, Run, begun
from xdist.scheduler import LoadFileScheduling

from coloctl.errors import LabError
from coloctl.lab import guest, qemu, rootless

# A shell that starts something behind itself lets it ignore Ctrl-C, and so would what tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of this machine, not of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For `make check`, with --hypothesis-profile; a test that asks for a number of examples gets it.
settings.register_profile("quick", settings.get_profile("patient"), max_examples=20)
settings.load_profile("patient")

#: Cheap ones first, so that a broken rule is known before a guest boots.
KINDS = ("unit", "qemu", "guest")

HERE = Path(__file__).parent

#: Why the guest tests are left out, for the workers.
REFUSED = "COLOCTL_TEST_NOT_ROOT"

#: Debian 12's, Debian 13's and its backports' QEMU.
MATRIX = ("7.2", "10.0", "11.1")


def kind_of(item: pytest.Item) -> str | None:
    return next((kind for kind in KINDS if item.get_closest_marker(kind)), None)


def kind_of_folder(path: Path) -> str:
    """Name the kind of the tests below ``tests/unit``, ``tests/qemu`` or ``tests/guest``."""
    part = path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""
    return part if part in KINDS else "unit"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the folders of the other kinds unread where ``-m`` is the name of one kind.

    Every worker imports all that it collects, which takes it longer than most of its tests.
    """
    wanted = config.option.markexpr
    if wanted not in KINDS or collection_path.parent != HERE or not collection_path.is_dir():
        return None
    return True if collection_path.name in {*KINDS} - {wanted} else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests are collected: all of it lives to the end.

    Each of several workers would look at all that it has imported so far, again and again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Every test has a kind before `-m` chooses, and the kinds follow each other afterwards.

    Those that read the product's sources are the first of their kind. They are long, and one worker
    gets them all, which parses the sources once.
    """
    for item in items:
        if kind_of(item) is None:
            item.add_marker(kind_of_folder(item.path))
    yield
    items.sort(key=lambda item: "product" not in getattr(item, "fixturenames", ()))
    last_first = hasattr(config, "workerinput")
    items.sort(key=lambda item: KINDS.index(kind_of(item) or "unit"), reverse=last_first)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With ``--dist loadfile`` the longest files come first, and the many short ones fill up."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Several workers are what the one that starts them is: root, if guests may be wanted."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        words = config.option.markexpr
        if not config.option.collectonly and (not words or "guest" in words):
            become_root(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Guest tests run as root: without it, of a private user namespace in which all starts anew.

    Where the system allows none, they are skipped with its reason.
    """
    gc.freeze()  # what was collected lives to the end: no garbage collection looks at it again
    guests = [item for item in session.items if kind_of(item) == "guest"]
    if not guests or session.config.option.collectonly or not rootless.needed():
        return
    if not hasattr(session.config, "workerinput"):
        become_root(session.config)
    for item in guests:
        item.add_marker(pytest.mark.skip(reason=os.environ.get(REFUSED, "this needs root")))


def become_root(config: pytest.Config) -> None:
    """All of it starts anew as root of a user namespace; or the environment says why it cannot."""
    if not rootless.needed():
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture(in_=True)  # the new process writes to the terminal again
    try:
        rootless.enter()
    except LabError as refused:
        os.environ[REFUSED] = f"{refused} hint: {refused.hint}"
    finally:
        capture.resume_global_capture()


#: When each test of this worker began, for the check at its end.
BEGUN = pytest.StashKey[list[Begun]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note which test runs: the check at the end runs within another one."""
    item.config.stash.setdefault(BEGUN, []).append(begun(item.nodeid))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """The run ends as an error that names every process, namespace, tap and file it leaves.

    It is an error of this worker's last test; each sentence names the test that left the thing.
    """
    run = Run(tests=request.config.stash.setdefault(BEGUN, []))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in run.environment().items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", None)
        yield
        leaks = run.leaks()
        run.sweep()
    if leaks:
        pytest.fail("the tests left something behind: " + "; ".join(leaks) + ".", pytrace=False)


@pytest.fixture(scope="session")
def product() -> house.Tree:
    """Every module of the product, parsed once by the worker whose tests read them."""
    return house.product()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Let an ``async def`` test run in asyncio's loop, as the product does."""
    return "asyncio"


@pytest.fixture(scope="session")
def qemu_builds() -> Callable[[str], qemu.Build]:
    """The QEMU of a name of the matrix, fetched when it is asked for and not there yet."""
    return functools.cache(qemu.provide)


@pytest.fixture(scope="session", params=MATRIX)
def qemu_build(
    request: pytest.FixtureRequest, qemu_builds: Callable[[str], qemu.Build]
) -> qemu.Build:
    """Each QEMU of the matrix in its turn."""
    return qemu_builds(request.param)


@pytest.fixture(scope="session")
def guest_image(qemu_builds: Callable[[str], qemu.Build]) -> guest.GuestImage:
    """The lab's guest, built when it is not there yet."""
    return guest.find() or guest.provide(qemu_img=qemu_builds(qemu.FALLBACK).img)
