"""The pytest plugin in other people's runs: idle until it is asked, clear when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.run import runner, testbed
from coloctl.errors import LabError
from coloctl.lab import network, rootless

pytestmark = pytest.mark.unit
pytest_plugins = ["pytester"]


@pytest.fixture
def theirs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of somebody else's tests, run in this process."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:cacheprovider\n")
    return pytester


class Judged:
    """What a runner answers."""

    reason, replay = "", "coloctl chaos run bad.toml --seed 3"

    def __init__(self, validity: str = "valid") -> None:
        self.validity = Validity(validity)
        self.verdicts = [
            Verdict("no_lost_acks", Validity.VALID, "All are there."),
            Verdict("one_primary", self.validity, "Two spoke.", ("at 1.5 s: a and b",)),
        ]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A runner whose runs are noted; scenarios called bad*.toml are invalid."""
    noted: list[Any] = []

    def run(path: Path, *, seed: int | None, name: str) -> Judged:
        noted.append((path.name, seed))
        return Judged("invalid" if path.name.startswith("bad") else "valid")

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(rootless, "needed", lambda: False)
    return noted


def test_a_run_that_asks_for_nothing_loads_nothing(theirs: pytest.Pytester) -> None:
    theirs.makepyfile("""
        import sys

        def test_it():
            loaded = {name for name in sys.modules if name.startswith("coloctl")}
            assert loaded == {"coloctl", "coloctl.pytest_plugin"}

        async def test_nobody_runs_this():
            pass
        """)
    done = theirs.runpytest_subprocess()
    done.assert_outcomes(passed=1, failed=1)  # as without the plugin
    done.stdout.fnmatch_lines("*async def functions are not natively supported*")


def test_the_marker_and_the_fixtures_are_listed(theirs: pytest.Pytester) -> None:
    assert "@pytest.mark.colo_scenario(file" in str(theirs.runpytest("--markers").stdout)
    listed = str(theirs.runpytest("--fixtures").stdout)
    for name in ("colo_lab", "colo_pair", "colo_setting", "colo_verdict"):
        assert f"\n{name} --" in listed


def test_without_the_rights_a_test_says_why(
    theirs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise LabError("No namespaces here.", hint="ask the administrator")

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(rootless, "enter", refuse)
    monkeypatch.setattr(rootless, "needed", lambda: True)
    theirs.makepyfile("def test_lab(colo_lab): pass\ndef test_other(): pass")
    done = theirs.runpytest_inprocess()
    done.assert_outcomes(errors=1, passed=1)
    done.stdout.fnmatch_lines("*No namespaces here. (ask the administrator)")
    assert "Traceback" not in str(done.stdout)


def test_only_a_run_that_needs_a_lab_begins_again(
    theirs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(rootless, "enter", lambda: entered.append("entered"))
    monkeypatch.setattr(rootless, "needed", lambda: False)
    theirs.makepyfile(test_plain="def test_plain(): pass")
    theirs.runpytest_inprocess().assert_outcomes(passed=1)
    theirs.makepyfile(test_lab="def test_lab(colo_lab): pass")
    theirs.runpytest_inprocess("--collect-only")
    theirs.runpytest_inprocess("-k", "plain")
    assert entered == []
    monkeypatch.setattr(network.Lab, "up", network.Lab)
    monkeypatch.setattr(network.Lab, "down", lambda self: entered.append(f"down {self.name}"))
    theirs.runpytest_inprocess("-k", "test_lab").assert_outcomes(passed=1)
    assert entered[0] == "entered" and entered[1].startswith("down p")


class FakePair:
    """Is opened, made ready and closed, as `colo_pair` does it."""

    told: list[str]

    def __init__(self, told: list[str], broken: bool = False) -> None:
        self.told, self.broken = told, broken

    async def open(self) -> None:
        self.told.append("open")

    async def ask(self, do: Any) -> None:
        self.told.append("boot")
        if self.broken:
            raise LabError("The guest failed to start.", hint="look at its console")

    async def protect(self, timeout: float) -> None:
        self.told.append("protect")

    async def close(self) -> None:
        self.told.append("close")


@pytest.fixture
def told(theirs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of the lab and the pair of their tests; `colo_parts` are nobody."""
    told: list[str] = []
    monkeypatch.setattr(rootless, "needed", lambda: False)
    monkeypatch.setattr(network.Lab, "up", network.Lab)
    monkeypatch.setattr(network.Lab, "down", lambda self: told.append("down"))
    monkeypatch.setattr("coloctl.chaos.run.testbed.pair_file", lambda *_: "file")
    monkeypatch.setattr("coloctl.pair", lambda _file: FakePair(told), raising=False)
    theirs.makeconftest("""
        import pytest
        from pathlib import Path

        @pytest.fixture(scope="session")
        def colo_parts():
            return (Path("qemu"), "tcg", None)
        """)
    return told


def test_a_pair_is_ready_before_its_test_and_gone_behind_it(
    theirs: pytest.Pytester, told: list[str]
) -> None:
    theirs.makepyfile("""
        import asyncio

        async def test_fails(colo_pair):
            colo_pair.told.append("test")
            await asyncio.sleep(0)
            assert not colo_pair

        def test_need_not_be_async(colo_pair, colo_lab):
            assert colo_lab.name.startswith("p")
        """)
    theirs.runpytest_inprocess().assert_outcomes(passed=1, failed=1)
    assert told[:6] == ["open", "boot", "protect", "test", "close", "down"]
    assert told[6:] == ["open", "boot", "protect", "close", "down"]


def test_a_pair_that_does_not_come_up_is_an_error_with_its_sentence(
    theirs: pytest.Pytester, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloctl.pair", lambda _file: FakePair(told, broken=True), raising=False)
    theirs.makepyfile("async def test_it(colo_pair): pass")
    done = theirs.runpytest_inprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines("*The guest failed to start. (look at its console)")
    assert told == ["open", "boot", "close", "down"]


def test_ctrl_c_in_a_test_ends_the_pair(theirs: pytest.Pytester, told: list[str]) -> None:
    theirs.makepyfile("""
        import os, signal

        async def test_it(colo_pair):
            os.kill(os.getpid(), signal.SIGINT)
        """)
    with pytest.raises(KeyboardInterrupt):
        theirs.runpytest_inprocess()
    assert told == ["open", "boot", "protect", "close", "down"]


def test_the_setting_can_be_overridden(theirs: pytest.Pytester, told: list[str]) -> None:
    theirs.makepyfile("""
        import dataclasses
        import pytest

        @pytest.fixture
        def colo_setting(colo_setting):
            return dataclasses.replace(colo_setting, delay_ms=200, circular=True)

        def test_it(colo_setting):
            assert colo_setting.delay_ms == 200 and colo_setting.accel == "tcg"
            assert colo_setting.circular
        """)
    theirs.runpytest_inprocess().assert_outcomes(passed=1)
    assert told == []
    assert testbed.Testbed.__dataclass_fields__["delay_ms"].default == 500


# -- the marker


def test_a_marked_test_runs_behind_its_scenario(theirs: pytest.Pytester, runs: list[Any]) -> None:
    theirs.makefile(".toml", kill="", bad="")
    theirs.makepyfile("""
        import pytest

        @pytest.mark.colo_scenario("kill.toml", seed=7)
        def test_good(colo_verdict):
            assert colo_verdict.validity == "valid"

        @pytest.mark.colo_scenario("kill.toml")
        def test_its_own_seed():
            pass

        @pytest.mark.colo_scenario("bad.toml")
        def test_bad():
            raise ValueError("is never reached")

        @pytest.mark.colo_scenario("absent.toml")
        def test_absent():
            pass

        def test_unmarked(colo_verdict):
            pass
        """)
    done = theirs.runpytest_inprocess()
    done.assert_outcomes(passed=2, failed=2, errors=1)
    assert runs == [("kill.toml", 7), ("kill.toml", None), ("bad.toml", None)]
    done.stdout.fnmatch_lines(
        [
            "*bad.toml is invalid.",
            "*one_primary is invalid: Two spoke.",
            "*at 1.5 s: a and b",
            "`coloctl chaos run bad*",
        ]
    )
    done.stdout.fnmatch_lines("*There is no scenario *absent.toml*")
    done.stdout.fnmatch_lines("*colo_verdict needs the marker colo_scenario.")
    assert "never reached" not in str(done.stdout).split("FAILURES")[0]
