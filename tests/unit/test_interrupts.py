"""Ctrl-C never leaves something half made that no one ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from coloctl import interrupts
from coloctl.chaos.run import testbed
from coloctl.lab import netns

pytestmark = pytest.mark.unit


def test_it_takes_effect_at_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def both() -> Iterator[None]:
    """SIGTERM breaks off as Ctrl-C does, as verbs that build a lab have it."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    interrupts.interruptible()
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("both")
def test_a_signal_that_ends_a_job_breaks_off_and_waits_for_the_end_of_the_block(
    signum: signal.Signals,
) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(signum)
        done.append("all of it")
    assert done == ["all of it"]
    with interrupts.deferred(raise_after=False):
        signal.raise_signal(signum)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signum)


def test_where_the_other_signal_ends_the_process_that_stays_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with interrupts.deferred():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_is_not_lost_where_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        raise LookupError
    assert isinstance(raised.value.__context__, LookupError)


def test_it_takes_no_effect_where_a_clean_up_must_end() -> None:
    with interrupts.deferred(raise_after=False):
        signal.raise_signal(signal.SIGINT)


def test_who_ignores_it_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone() -> None:
    said = []

    def work() -> None:
        with interrupts.deferred():
            said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == ["done"]


def test_a_step_in_a_namespace_does_not_run_on_behind_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Thread.start` waits until the thread has begun; Ctrl-C came just there on a busy machine."""
    begin, ran = threading.Thread.start, []

    def slowly(thread: threading.Thread) -> None:
        begin(thread)
        signal.raise_signal(signal.SIGINT)

    def step() -> None:
        time.sleep(0.1)
        ran.append("named its namespace")

    monkeypatch.setattr(threading.Thread, "start", slowly)
    with pytest.raises(KeyboardInterrupt):
        netns._on_a_thread(step)
    assert ran == ["named its namespace"]


def test_a_lab_that_stands_when_an_interrupt_comes_is_taken_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deeds: list[str] = []

    class Standing:
        @classmethod
        def up(cls, name: str) -> Standing:
            deeds.append(f"{name} up")
            signal.raise_signal(signal.SIGINT)  # before anybody has got hold of it
            return cls()

        def down(self) -> None:
            deeds.append("down")

    monkeypatch.setattr(testbed, "Lab", Standing)
    monkeypatch.setattr(testbed, "_refuse_used", lambda *_: None)
    plain = testbed.Testbed.__new__(testbed.Testbed)
    object.__setattr__(plain, "name", "interrupted")
    object.__setattr__(plain, "keep", False)
    with pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as stack:
        stack.enter_context(testbed.lab(plain))
    assert deeds == ["interrupted up", "down"]
