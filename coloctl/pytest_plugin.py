"""Provide a lab, a protected pair and scenarios as fixtures and a marker for the tests of others.

pytest loads this wherever coloctl is installed, so it imports nothing of coloctl, and does nothing,
until a test asks for one of its fixtures or carries its marker. Then it uses `lab.network`,
`chaos.run` and `api.pair`.

========================= =========================================================================
``colo_lab``              a lab of network namespaces that stands while the test runs
``colo_pair``             the lab's guest as a protected pair, served by a supervisor of its own
``colo_setting``          the testbed of `colo_pair`; override it to change that
``colo_verdict``          the result of the marker's scenario
``@pytest.mark.colo_scenario("file.toml", seed=7)``
                          the test runs when that scenario is valid, and fails otherwise
========================= =========================================================================

Tests that use ``colo_pair`` may be ``async def``; no other plugin is needed to run them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coloctl.api.pair import Pair
    from coloctl.chaos.run.result import RunResult
    from coloctl.chaos.run.testbed import Testbed
    from coloctl.check.choose import RunParts
    from coloctl.lab.network import Lab

MARKER = "colo_scenario"
FIXTURES = frozenset({"colo_lab", "colo_pair", "colo_verdict"})

_verdicts = pytest.StashKey["list[RunResult]"]()
_refusal = pytest.StashKey[Exception]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(file, seed=None): run a chaos scenario first; the test fails unless it is valid",
    )


def needs_lab(item: pytest.Item) -> bool:
    """Return whether the test can only run where namespaces can be made."""
    asked = FIXTURES.intersection(getattr(item, "fixturenames", ()))
    return bool(asked) or item.get_closest_marker(MARKER) is not None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Run pytest again as root of a private user namespace, if a test needs that.

    Root has no need of it. It does not happen under pytest-xdist: its workers hang on pipes that
    would not survive. There, and where the system allows no such namespace, the fixtures fail with
    the reason.
    """
    if session.config.option.collectonly or hasattr(session.config, "workerinput"):
        return
    if os.geteuid() == 0 or not any(map(needs_lab, session.items)):
        return
    from coloctl.errors import LabError
    from coloctl.lab import rootless

    capture = session.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)  # the new process writes to the terminal again
    try:
        rootless.enter()
    except LabError as refused:
        session.config.stash[_refusal] = refused  # each test that needs a lab fails with it
    finally:
        if capture is not None:
            capture.resume_global_capture()


@pytest.fixture(scope="session")
def colo_parts() -> RunParts:
    """Find a QEMU and an accelerator that hold COLO here, and the lab's guest; fetched if need be.

    COLOCTL_QEMU names the QEMU, as ``--qemu`` of `coloctl demo` does.
    """
    from coloctl.check import choose

    with _plainly():
        return choose.engage(os.environ.get("COLOCTL_QEMU") or None)


@pytest.fixture
def colo_setting(colo_parts: RunParts) -> Testbed:
    """Build the testbed of `colo_pair`: override this fixture to change memory, delay or policy."""
    from coloctl.chaos.run.testbed import Testbed

    return Testbed(*colo_parts, name=_name())


@pytest.fixture
def colo_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Set up two hosts, a client and a switch; after the test nothing of them is left."""
    with _plainly():
        _require_root(request.config)
        from coloctl.lab.network import Lab

        lab = Lab.up(_name())
    try:
        yield lab
    finally:
        with _plainly():
            lab.down()


@pytest.fixture
def colo_pair(colo_lab: Lab, colo_setting: Testbed) -> Iterator[Pair]:
    """Start the guest in the lab and protect it; after the test nothing of it is left."""
    import coloctl
    from coloctl.chaos.run import testbed
    from coloctl.chaos.run.site import LabSite

    async def ready(pair: Pair) -> None:
        await pair.open()
        await pair.ask(lambda acts: testbed.boot(colo_setting.name, LabSite(colo_lab), acts.client))
        await pair.protect(timeout=testbed.PROTECT_WAIT_S)

    with testbed.folder(colo_setting) as home:
        pair = coloctl.pair(testbed.pair_file(colo_setting, colo_lab, home))
        try:
            with _plainly():
                asyncio.run(ready(pair))
            yield pair
        finally:
            with _plainly():
                asyncio.run(pair.close())


@pytest.fixture
def colo_verdict(request: pytest.FixtureRequest) -> RunResult:
    """Return the result of the scenario of the test's marker; it has been run, and was valid."""
    return _results_of(request.node)[0]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a marked test after its scenarios; an ``async def`` one of ours runs in a loop."""
    if pyfuncitem.get_closest_marker(MARKER) is not None:
        _results_of(pyfuncitem)
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test) and "colo_pair" in pyfuncitem.fixturenames:

        def in_a_loop(**arguments: Any) -> None:
            asyncio.run(test(**arguments))

        pyfuncitem.obj = in_a_loop
        try:
            return (yield)
        finally:
            pyfuncitem.obj = test
    return (yield)


def _results_of(item: pytest.Item) -> list[RunResult]:
    """Return the results of the item's scenarios, each run once; fail where one is not valid."""
    if _verdicts in item.stash:
        return item.stash[_verdicts]
    results = []
    for marker in item.iter_markers(MARKER):
        file = _file_of(item, *marker.args)
        with _plainly():
            _require_root(item.config)
            result = run_scenario(file, seed=marker.kwargs.get("seed"))
        if result.validity != "valid":
            pytest.fail(_report(file, result), pytrace=False)
        results.append(result)
    if not results:
        pytest.fail(f"colo_verdict needs the marker {MARKER}.", pytrace=False)
    item.stash[_verdicts] = results
    return results


def run_scenario(file: Path, *, seed: int | None) -> RunResult:
    """Run the scenario in a lab of this process's own and return its result."""
    from coloctl.chaos.run import runner

    return runner.run(file, seed=seed, name=_name())


def _file_of(item: pytest.Item, *arguments: object) -> Path:
    """Find the scenario's file: beside the test, or below the root of the tests."""
    if len(arguments) != 1 or not isinstance(arguments[0], str | os.PathLike):
        pytest.fail(f"The marker {MARKER} takes one file and a seed.", pytrace=False)
    places = [folder / arguments[0] for folder in (item.path.parent, item.config.rootpath)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.fail(f"There is no scenario {' or '.join(map(str, places))}.", pytrace=False)
    return found


def _report(file: Path, outcome: RunResult) -> str:
    """Write the sentences of a run that was not valid."""
    lines = [f"The scenario {file} is {outcome.validity}.", outcome.reason]
    for one in outcome.verdicts:
        if one.validity != "valid":
            lines.append(f"  {one.check} is {one.validity}: {one.because}")
            lines += [f"    {item}" for item in one.counterexample]
    if outcome.replay:
        lines.append(f"`{outcome.replay}` runs it again.")
    return "\n".join(filter(None, lines))


def _name() -> str:
    """Return the name of the lab and its pair: this process's own.

    Only one test of a process runs at a time.
    """
    return f"p{os.getpid()}"


def _require_root(config: pytest.Config) -> None:
    """Require that this process may make namespaces; raises `LabError` with the reason why not."""
    from coloctl.errors import LabError
    from coloctl.lab import rootless

    if not rootless.needed():
        return
    if _refusal in config.stash:
        raise config.stash[_refusal]
    raise LabError(
        "A lab needs root, or a user namespace in which pytest is root.",
        hint="run pytest without -n, or as root",
    )


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Turn an error of coloctl in the block into a sentence and a hint, without a traceback."""
    try:
        yield
    except Exception as error:
        from coloctl.errors import ColoctlError

        if not isinstance(error, ColoctlError):
            raise
        hint = f" ({error.hint})" if error.hint else ""
        pytest.fail(f"{error.message}{hint}", pytrace=False)
