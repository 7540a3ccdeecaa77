"""verify: what it prints for each outcome, and what its exit code says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from coloctl.cli.verbs import run_verb, verify
from coloctl.errors import NotProtected
from coloctl.model.verified import DiskVerified, MemoryVerified, Verified, VerifyOutcome

pytestmark = pytest.mark.unit

DISK = DiskVerified("disk0", 1 << 20, 4096)
DAMAGED = DiskVerified("disk0", 1 << 20, 4096, ((65536, 131072),), ((0, 65536),))


STILL = MemoryVerified("pc.ram", 1000, 900, 100, 0, left_out=393216)
PLACES = ((0x2345000, 0x2346000), (0x5000, 0x7000))
DAMAGED_PAGES = MemoryVerified("pc.ram", 1000, 897, 100, 3, PLACES)


def report(
    outcome: VerifyOutcome,
    *disks: DiskVerified,
    reason: str = "",
    pages: MemoryVerified | None = None,
) -> Verified:
    return Verified(
        "2026-11-28T20:00:00+00:00", outcome, 1.5, 100.0, "a", "b", disks, reason,
        "" if pages else "Not memory.", pages,
    )  # fmt: skip


class FakeActs:
    """A supervisor that found this."""

    asked: ClassVar[list[bool | None]] = []  #: whether memory was

    def __init__(self, found: Verified | Exception) -> None:
        self._found = found
        self.client = type("Client", (), {"on_event": None})()

    def verify(self, _wait_s: float, *, memory: bool | None = None) -> Verified:
        self.asked.append(memory)
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def plan(self, verb: str, **_asked: Any) -> list[dict[str, Any]]:
        return [{"node": "a", "why": verb, "act": "hash every disk"}]


@pytest.fixture
def verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the verb against what a supervisor found; answers exit code and both outputs."""

    def ask(found: Verified | Exception, *options: str) -> tuple[int, str, str]:
        @contextlib.contextmanager
        def acts(_pair: str) -> Iterator[FakeActs]:
            yield FakeActs(found)

        monkeypatch.setattr("coloctl.cli.reach.acts", acts)
        code = run_verb(["verify", "web", *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        (report(VerifyOutcome.EQUAL, DISK), 0, "Disk disk0 (1 MiB) is the same on both nodes."),
        (report(VerifyOutcome.DIFFERENT, DAMAGED), 1, "disk0: 64 KiB at byte 65536 differ"),
        (report(VerifyOutcome.DIFFERENT, DAMAGED), 1, "64 KiB at byte 0 were written all the time"),
        (report(VerifyOutcome.DIFFERENT, DAMAGED), 1, "`coloctl reprotect web`"),
        (report(VerifyOutcome.BROKEN_OFF, reason="'stop' was begun."), 6, "'stop' was begun."),
    ],
)
def test_each_outcome_has_its_words_and_its_exit_code(
    verified: Callable[..., tuple[int, str, str]], found: Verified, code: int, says: str
) -> None:
    got, out, _ = verified(found)
    assert got == code and says in out and "Not memory." in out


@pytest.mark.parametrize(
    ("pages", "code", "says"),
    [
        (STILL, 0, "Of 1000 pages of memory 900 were still, and these are the same"),
        (STILL, 0, "900 were still, 0 of them different; 100 moved and were not compared."),
        (STILL, 0, "384 KiB of the guest's memory were not looked at."),
        (DAMAGED_PAGES, 1, "is not that of node a in 3 pages, at guest-physical address 0x2345000"),
        (DAMAGED_PAGES, 1, "pc.ram: 8 KiB at guest-physical address 0x5000 differ"),
        (DAMAGED_PAGES, 1, "`coloctl reprotect web`"),
    ],
)
def test_what_was_found_of_memory_is_told(
    verified: Callable[..., tuple[int, str, str]], pages: MemoryVerified, code: int, says: str
) -> None:
    outcome = VerifyOutcome.DIFFERENT if pages.different else VerifyOutcome.EQUAL
    found = report(outcome, DISK, pages=pages)
    got, out, _ = verified(found)
    assert got == code and says in out
    assert Verified.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_memory_can_be_left_out(verified: Callable[..., tuple[int, str, str]]) -> None:
    FakeActs.asked.clear()
    for options in ((), ("--no-memory",), ("--memory",)):
        verified(report(VerifyOutcome.EQUAL, DISK), *options)
    assert FakeActs.asked == [None, False, True]


def test_what_an_earlier_coloctl_wrote_is_read() -> None:
    found = report(VerifyOutcome.EQUAL, DISK)
    document = found.to_json()
    del document["pages"]
    assert Verified.from_json(document) == found


def test_the_document_is_the_whole_report(
    verified: Callable[..., tuple[int, str, str]],
) -> None:
    found = report(VerifyOutcome.DIFFERENT, DAMAGED)
    code, out, _ = verified(found, "-f", "json")
    document = json.loads(out)
    assert code == 1 and document.pop("schema") and document.pop("name") == "web"
    assert Verified.from_json(document) == found


def test_a_pair_without_a_second_copy_is_refused(
    verified: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = verified(NotProtected("Pair web is unprotected.", hint="wait"))
    assert code == 3 and not out and "unprotected" in err and "hint: wait" in err


def test_a_dry_run_asks_nothing(verified: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = verified(NotProtected("must not be asked"), "--dry-run")
    assert code == 0 and "hash every disk" in out


def test_every_outcome_has_an_exit_code() -> None:
    assert set(verify._CODES) == set(VerifyOutcome)
