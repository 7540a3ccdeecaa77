"""Tables as people see them: whole texts, at the width of a plain terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType
from support.views import FROZEN, LOST, PROTECTED, RESYNC, looked

from coloctl.cli.views import pair as pair_views
from coloctl.cli.views import plain, render
from coloctl.model.observation import Diagnosis
from coloctl.model.pair import Role
from coloctl.model.strangers import Stranger
from coloctl.model.timeline import FenceRecord, Timeline
from coloctl.model.view import ActProgress, Fencing
from coloctl.supervisor.beside import Beside

pytestmark = pytest.mark.unit

TIMELINE = Timeline(
    "b",
    "a",
    Role.SECONDARY,
    {
        "fenced": 4.0,
        "arbitrated": 5.0,
        "yanked": 8.0,
        "promoted": 12.0,
        "running": 32.0,
        "cleared": 32.0,
        "verified": 40.0,
    },
    fence=FenceRecord("a", "kill", "sigkill", 4.0, 7),
)


def drawn(what: RenderableType, width: int = 80) -> str:
    """The text, without the blanks that fill its lines up."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(what)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_a_protected_pair() -> None:
    assert drawn(pair_views.status(PROTECTED)) == (
        "web   ● colo for 00:03:12   generation 2\n"
        "The first checkpoint is complete.\n"
        "\n"
        "NODE  ROLE       STATE    PROTECTION  CHECKPOINTS   PERIOD   PAUSE p50/p99\n"
        "a     primary    running  colo                187  1002 ms  11.2 / 14.8 ms\n"
        "b     secondary  running  colo                  -        -               -"
    )


def test_a_guest_that_runs_alone_shows_its_exposure_and_no_old_checkpoints() -> None:
    assert drawn(pair_views.status(LOST)) == (
        "web   ● unprotected for 00:00:12   generation 2\n"
        "The guest runs on node b alone since node a was lost.\n"
        "\n"
        "NODE  ROLE     STATE    PROTECTION   CHECKPOINTS  PERIOD  PAUSE p50/p99\n"
        "a     -        dead     fenced                 -       -              -\n"
        "b     primary  running  unprotected            -       -              -"
    )


def test_an_act_under_way_and_the_clock_of_exposure() -> None:
    text = drawn(pair_views.status(RESYNC))
    assert "web   ● resync for 00:00:03   unprotected for 1d 01:00:00   generation 2" in text
    assert "→ start: copying the disks, 25 %" in text and "MB/s" not in text
    fast = ActProgress("start", "mirror", 512, 2048, "bytes", bytes_per_s=98.7e6, left_s=192.0)
    text = drawn(pair_views.status(replace(RESYNC, progress=fast)))
    assert "copying the disks, 25 %, 98.7 MB/s, 00:03:12 left" in text


def test_a_node_that_does_not_answer_is_not_called_running() -> None:
    assert re.search(r"^a +primary +not answering +colo", drawn(pair_views.status(FROZEN)), re.M)


def test_the_extended_view_has_every_fact_of_a_node() -> None:
    text = drawn(pair_views.status(FROZEN, extended=True))
    for fact in ("netns:host-a", "4711", "11.1.3", "secondary", "monitor", "/etc/coloctl/web.toml"):
        assert fact in text
    assert "last checkpoint   10.9 ms pause, 1003 ms after the one before" in text


def test_a_stranger_that_was_cut_off_is_told_of_until_the_supervisor_ends() -> None:
    seen = Beside()
    assert "stranger" not in drawn(pair_views.status(PROTECTED))
    for at_s, wire in ((10.0, "the disks"), (400.0, "what hn0 sends"), (500.0, "the disks")):
        seen.turn_away(Stranger(wire, "/run/x.sock", "process 7 of user id 65534"), at_s)
    text = drawn(pair_views.status(replace(PROTECTED, turned_away=seen.turned_away(610))))
    line = " ".join(text.split())
    assert (
        "3 strangers were cut off from the pair's wires (the disks: 2, what hn0 sends: 1), first "
        "10 min ago. A stranger at /run/x.sock (the disks) was cut off: process 7 of user id 65534."
    ) in line


def test_a_qemu_without_a_unit_and_one_that_was_given_up_are_news() -> None:
    unit = "The QEMU of node b on hv2 has no unit of systemd: there is no busctl."
    gone = "The secondary on node b (process 7 on hv9) was given up with its machine."
    nodes = {**PROTECTED.nodes, "b": replace(PROTECTED.nodes["b"], unit=unit)}
    shown = drawn(pair_views.status(replace(PROTECTED, nodes=nodes, given_up=gone)), width=200)
    assert unit in shown and gone in shown
    assert "systemd" not in drawn(pair_views.status(PROTECTED))


@pytest.mark.parametrize("extended", [False, True])
def test_nothing_is_wider_than_a_plain_terminal(extended: bool) -> None:
    for view in (PROTECTED, LOST, RESYNC, FROZEN):
        whole = drawn(pair_views.status(view, extended=extended), width=300)
        assert max(map(len, whole.splitlines())) <= 80


def test_all_pairs_below_each_other_with_those_that_cannot_be_seen() -> None:
    gone = looked(None, name="db", supervisor="gone", error="The supervisor of db is gone.")
    silent = looked(None, name="mail", supervisor="silent", error="It did not greet.")
    text = drawn(pair_views.statuses([looked(), gone, silent]))
    assert "web   ● colo" in text
    assert "db   ● no supervisor\nThe supervisor of db is gone.\n`coloctl stop db --force`" in text
    assert "mail   ● supervisor does not answer\nIt did not greet." in text
    assert "mail --force" not in text


def test_the_list_of_pairs() -> None:
    rows = [
        plain.summary(looked(LOST)),
        plain.summary(looked(None, name="db", supervisor="gone", error="It is gone.")),
    ]
    assert drawn(pair_views.pairs(rows)) == (
        "PAIR  PROTECTION   GUEST ON  GENERATION  EXPOSED   REASON\n"
        "web   unprotected  node b    2           00:00:12  The guest runs on node b alo…\n"
        "db    gone         -         -           -         It is gone."
    )


def test_the_list_has_a_word_for_what_may_still_run_on_a_machine() -> None:
    nodes = {**LOST.nodes, "a": replace(LOST.nodes["a"], left="It may still run.")}
    view = replace(LOST, nodes=nodes, reason="Alone.")
    gone = looked(None, name="db", supervisor="gone", error="It is gone.")
    rows = [plain.summary(looked(view), given_up=True), plain.summary(gone, given_up=True)]
    assert [row["may_run"] for row in rows] == ["left on node a, given up", "given up"]
    text = drawn(pair_views.pairs(rows), width=120)
    assert "unprotected, left on node a, given up" in text and "gone, given up" in text
    assert [plain.summary(looked(LOST))[name] for name in ("may_run", "paused")] == ["", False]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("rebooted", "dead, proven"),
        ("agent-already-dead", "dead, proven"),
        ("out-of-reach", "out of reach; the claim"),
        ("agent-out-of-reach", "agent reports it off, unproven"),
        ("confirmed-out-of-reach", "operator declares it off, unproven"),
        (None, "the other node is fenced"),
    ],
)
def test_a_node_is_called_proven_dead_only_with_a_proof(how: str | None, said: str) -> None:
    fence = None if how is None else FenceRecord("a", "kill", how)
    text = " ".join(drawn(render.timeline("web", replace(TIMELINE, fence=fence)), 120).split())
    assert said in text
    assert ("dead, proven" in text) == (said == "dead, proven")


def test_a_timeline_is_drawn_on_one_axis() -> None:
    assert drawn(render.timeline("web", TIMELINE)) == (
        "web runs on node b, which was the secondary; node a is fenced.\n"
        "\n"
        "STEP             AT\n"
        "fenced       4.0 ms  ██▍                       the other node is dead, proven;\n"
        "                                               the point of no return\n"
        "arbitrated   5.0 ms    ▋                       the generation is claimed\n"
        "yanked       8.0 ms     █▊                     connections to it are cut\n"
        "promoted    12.0 ms       ██▍                  ordered to run on alone\n"
        "running     32.0 ms         ████████████       the guest runs\n"
        "cleared     32.0 ms                     ▏      the lost pair is cleared away\n"
        "verified    40.0 ms                     ████▊  asked once more: it runs"
    )


def test_a_timeline_says_what_it_was_for() -> None:
    past = replace(TIMELINE, cause="primary-frozen", fault_ms=-131.0)
    said = drawn(render.timeline("web", past)).splitlines()[1]
    assert said == "cause primary-frozen, noticed 131.0 ms after the fault"


def test_a_status_says_what_it_waits_for() -> None:
    view = replace(
        LOST,
        paused=True,
        diagnosis=Diagnosis.PRIMARY_FROZEN,
        waiting="Node b would run on alone, but the pair is paused.",
        nodes={**LOST.nodes, "a": replace(LOST.nodes["a"], fencing=Fencing.REQUIRED)},
    )
    text = drawn(pair_views.status(view))
    assert text.splitlines()[0].endswith("generation 2   paused")
    assert "✘ primary-frozen is what is seen; `coloctl explain web` says why." in text
    assert "Node b would run on alone, but the pair is paused." in text
    assert "`coloctl fence confirm web a`" in text
    calm = drawn(pair_views.status(replace(PROTECTED, paused=True)))
    assert "`coloctl resume web` switches it on" in calm


@pytest.mark.parametrize(
    ("begin", "end", "whole", "width", "expected"),
    [
        (0, 10, 10, 4, "████"),
        (5, 10, 10, 4, "  ██"),
        (0, 0, 10, 4, "▏"),
        (0, 0, 0, 4, ""),
        (0, 1, 8, 4, "▌"),
    ],
)
def test_bars(begin: float, end: float, whole: float, width: int, expected: str) -> None:
    assert render.bar(begin, end, whole, width) == expected


def test_no_colour_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=80, file=io.StringIO())
    console.print(pair_views.status(PROTECTED))
    assert "\x1b[3" not in console.file.getvalue()  # type: ignore[attr-defined]
