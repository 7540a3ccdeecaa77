"""What accuses a secondary, and what a sound one may do without being accused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.observations import PRIMARY, SECONDARY, observe

from coloctl.ha.analysis import diagnose
from coloctl.ha.decision import Action, decide
from coloctl.ha.divergence import (
    PROOF_LINES,
    PROOF_UNMATCHED,
    PROOF_WINDOWS,
    next_unmatched,
    proofs,
)
from coloctl.ha.processors import (
    FRESH_S,
    PROOF_LOOKS,
    Processor,
    ProcessorLoad,
    Stuck,
    Worked,
)
from coloctl.ha.unmatched import (
    EXCUSED_S,
    FREE_S,
    GRACE_CHECKPOINTS,
    GRACE_LONGEST_S,
    GRACE_S,
    UNMET,
    Moment,
    UnmatchedEvents,
    UnmatchedLines,
    shape,
)
from coloctl.model.observation import Contrast, Diagnosis, Life, Observation
from coloctl.model.pair import Policy
from coloctl.model.protection import Protection

pytestmark = pytest.mark.unit

LATER = Moment(1000.0, 1000)
SEGFAULT = b"[  33.120007] postgres[612]: segfault at 7f0000001000 ip 000055d0c01 error 4\n"


def found(contrast: Contrast) -> tuple[str, ...]:
    return proofs(contrast, "a", "b")


# events


def deeds(*story: tuple[str, float]) -> UnmatchedEvents:
    """What was heard: ``P`` or ``S``, and when; a checkpoint each second."""
    told = UnmatchedEvents()
    for who, at_s in story:
        if who == "P":
            told.primary("reset", at_s)
        else:
            told.secondary("reset", Moment(at_s, int(at_s)))
    told.judge(LATER)
    return told


@pytest.mark.parametrize(
    ("story", "accused"),
    [
        ([("S", 10.0)], True),
        ([("S", 10.0), ("S", 10.05)], True),
        ([("P", 10.0), ("S", 10.1)], False),  # the secondary is behind
        ([("S", 10.0), ("P", 10.15)], False),  # the secondary is ahead
        ([("P", 10.0), ("S", 10.0 + EXCUSED_S)], True),
        ([("P", 10.0), ("P", 10.05)], False),
    ],
)
def test_what_only_the_secondary_does_is_held_against_it(
    story: Sequence[tuple[str, float]], accused: bool
) -> None:
    assert bool(deeds(*story).alone) is accused


def test_the_primary_has_its_time_to_do_the_same() -> None:
    """As long as its checkpoints may have taken the secondary back to before it."""
    told = UnmatchedEvents()
    told.secondary("panic", Moment(10.0, 5))
    for early in (Moment(10.0 + GRACE_S, 6), Moment(10.5, 9), Moment(12.9, 5)):
        told.judge(early)
        assert told.undecided and not told.alone
    told.judge(Moment(10.0 + GRACE_LONGEST_S, 5))
    assert not told.undecided and list(told.alone) == ["panic"]
    assert found(Contrast(events=tuple(told.alone))) == (
        "Node b's guest says that its kernel panicked, and node a's does not.",
    )


def test_where_nothing_keeps_the_primary_from_running_it_has_less_time() -> None:
    """Each makes both guests the same again; what the primary could not run does not count."""
    then = Moment(10.0, 5, 7.0)
    for early in (
        Moment(10.9, 5 + GRACE_CHECKPOINTS - 1, 7.9),
        Moment(10.9, 5 + GRACE_CHECKPOINTS, 7.0 + FREE_S / 2),  # its host is busy
        Moment(10.9, 5 + GRACE_CHECKPOINTS, None),
    ):
        assert not then.ripe(early)
    assert then.ripe(Moment(10.4, 5 + GRACE_CHECKPOINTS, 7.0 + FREE_S + 0.001))


# guests on other machines

#: A late machine's events and times are seen so much later: the way, and how old a report may be.
LATENESS = st.sampled_from([0.0, 0.04, 0.5, 2.0])


@given(
    st.floats(-0.15, 0.15),
    st.tuples(LATENESS, LATENESS),
    st.floats(0.0, FRESH_S),
    st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 0.5)),
    st.lists(st.floats(0.0, 6.0), max_size=20),
)
def test_events_that_are_seen_late_are_not_taken_for_the_secondarys_alone(
    apart_s: float,
    late: tuple[float, float],
    lag_s: float,
    checkpoints: tuple[float, float],
    judged: list[float],
) -> None:
    """Both guests do the same 150 ms from each other at most; their events take their time."""
    (primary_late_s, secondary_late_s), (period_s, held) = late, checkpoints
    late_s = max(late)

    def moment(at_s: float) -> Moment:
        shown_s = at_s - primary_late_s  # of the primary's stream, which shows its checkpoints
        count = int(shown_s / period_s)
        read_s = at_s - lag_s
        free_s = read_s - count * period_s * held  # a busy host only makes it less
        return Moment(at_s, count, free_s, late_s)

    primary_s, secondary_s = 10.0 + primary_late_s, 10.0 + apart_s + secondary_late_s
    steps = [(primary_s, "P"), (secondary_s, "S"), *((10.0 + at_s, "judge") for at_s in judged)]
    told = UnmatchedEvents()
    for at_s, step in sorted(steps):
        if step == "P":
            told.primary("reset", at_s)
        elif step == "S":
            told.secondary("reset", moment(at_s))
        else:
            told.judge(moment(at_s))
    told.judge(moment(max(primary_s, secondary_s) + GRACE_LONGEST_S + late_s))
    assert not told.alone


@pytest.mark.parametrize("late_s", [0.0, 0.04, 0.5, 2.0])
def test_what_only_the_secondary_does_is_found_as_much_later_as_it_may_be_seen(
    late_s: float,
) -> None:
    told = UnmatchedEvents()
    told.secondary("panic", Moment(10.0, 5, None, late_s))
    told.judge(Moment(10.0 + GRACE_LONGEST_S + late_s - 0.01, 5, None, late_s))
    assert told.undecided
    told.judge(Moment(10.0 + GRACE_LONGEST_S + late_s + 0.01, 5, None, 0.0))
    assert list(told.alone) == ["panic"]


def test_while_events_may_be_missed_nothing_counts_and_for_a_while_after() -> None:
    told = UnmatchedEvents()
    told.secondary("panic", Moment(10.0, 5))
    told.missed(10.5)
    assert not told.undecided
    told.secondary("panic", Moment(10.5 + EXCUSED_S - 0.1, 9))
    told.judge(LATER)
    assert not told.alone
    told.secondary("panic", Moment(10.5 + EXCUSED_S, 9))
    told.judge(LATER)
    assert list(told.alone) == ["panic"]


@given(
    st.tuples(st.floats(0.0, 1.0), st.floats(0.5, 2.0)),
    st.tuples(st.floats(0.0, FRESH_S), st.floats(0.0, FRESH_S)),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=40, max_size=40),
    st.tuples(st.floats(0.2, 1.0), st.floats(0.0, 0.4)),
)
def test_times_of_processors_that_lag_make_no_spin_and_no_halt(
    load_of: tuple[float, float],
    lags: tuple[float, float],
    jitter: list[tuple[float, float]],
    checkpoints: tuple[float, float],
) -> None:
    """The threads' times are as old as a report may be, and the pauses are those until now."""
    period_s, held = checkpoints

    def held_s(at_s: float) -> float:
        whole, part = divmod(at_s, period_s)
        return (whole + min(1.0, part / period_s / held if held else 0.0)) * period_s * held

    def ran(at_s: float, share: float) -> tuple[float, float]:
        return ((at_s - held_s(at_s)) * share, 0.0)

    shares = load_of[0], min(1.0, load_of[0] * load_of[1])
    load = ProcessorLoad()
    for number, shaken in enumerate(jitter):
        now_s = 10.0 + 0.1 * number
        ended_s = now_s // period_s * period_s * held  # of pauses that have ended
        load.feed(
            *(
                Worked(now_s - lag * shake, ended_s, (ran(now_s - lag * shake, share),))
                for lag, shake, share in zip(lags, shaken, shares, strict=True)
            )
        )
        assert max(load.spinning, load.halted) < PROOF_WINDOWS


# consoles


def words(
    primary: Sequence[bytes], secondary: Sequence[bytes], late: Sequence[bytes] = ()
) -> UnmatchedLines:
    """Both write; ``late`` is what the primary writes within its grace."""
    told = UnmatchedLines()
    told.primary(primary, 10.0)
    told.secondary(secondary, Moment(10.0, 5))
    told.judge(Moment(10.5, 5))
    told.primary(late, 10.6)
    told.judge(Moment(10.7, 6))
    told.judge(Moment(14.0, 20))
    return told


def test_damage_that_only_the_secondary_tells_of_is_held_against_it() -> None:
    told = words([b"ready\n"], [b"ready\n", SEGFAULT])
    assert list(told.damage) == [
        "postgres[612]: segfault at 7f0000001000 ip 000055d0c01 error 4",
    ]
    assert found(Contrast(lines=tuple(told.damage)))


def test_a_flood_behind_the_first_line_about_damage_does_not_hide_it() -> None:
    flood = [b"R10: %s\n" % bytes([97 + n % 26] * (1 + n % 97)) for n in range(5 * UNMET)]
    (told,) = words([], [SEGFAULT, *flood]).damage
    assert told.startswith("postgres[612]: segfault")
    assert words([SEGFAULT], [SEGFAULT, *flood]).damage == {}


@pytest.mark.parametrize(
    ("primary", "secondary", "late"),
    [
        ([SEGFAULT], [SEGFAULT.replace(b"33.12", b"33.17").replace(b"612", b"613")], []),
        ([], [SEGFAULT], [SEGFAULT]),  # ahead
        ([SEGFAULT], [b"[ 33.1] postgres[612]: segf" + SEGFAULT], []),  # a checkpoint in the line
        ([], [b"[ 9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [redis:71]\n"], []),
        ([], [b"rcu: INFO: rcu_preempt detected stalls on CPUs/tasks\n"], []),
        ([], [b"clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc'\n"], []),
        ([], [b"\x1b[32m  OK  \x1b[0m started\r\n", b"\n", b"   \r\n"], []),
    ],
)
def test_what_a_sound_secondary_writes_is_not(
    primary: list[bytes], secondary: list[bytes], late: list[bytes]
) -> None:
    assert not words(primary, secondary, late).damage


def test_other_lines_count_while_the_primary_is_silent_and_with_answers_that_differ() -> None:
    lines = [b"FATAL: database is gone\n", b"retrying\n", b"giving up\n"]
    told = words([], lines)
    assert told.others == PROOF_LINES and not told.damage
    assert not found(Contrast(others=told.others))
    assert found(Contrast(others=told.others, unmatched=3))
    assert words([b"tick\n"], lines, [b"tock\n"]).others == 0


def test_a_primary_that_writes_more_than_is_read_excuses_everything() -> None:
    told = UnmatchedLines()
    told.secondary([SEGFAULT], Moment(10.0, 5))
    told.missed(10.2)
    told.judge(Moment(20.0, 50))
    assert not told.damage and not told.others


@given(st.lists(st.binary(max_size=60)), st.lists(st.binary(max_size=60)))
def test_the_same_console_never_accuses(before: list[bytes], now: list[bytes]) -> None:
    told = UnmatchedLines()
    told.before(before)
    told.primary(now, 1.0)
    told.secondary([*before, *now], Moment(1.0, 1))
    told.judge(LATER)
    assert not told.damage and not told.others


def test_stamps_and_numbers_do_not_make_a_line_another_one() -> None:
    one = b"[    1.000001] eth0: link up, 1000 Mbps, id 52:54:00:ab:cd:01\n"
    two = b"[   17.5][    T1] eth0: link up, 100 Mbps, id 52:54:00:ab:cd:02\r\n"
    assert shape(one) == shape(two)
    assert shape(b"link up") != shape(b"link down")


# processors


def feed(*shares: tuple[float, float, float, float]) -> ProcessorLoad:
    """Windows of half a second: run and waited, of the primary and of the secondary."""
    load, at = ProcessorLoad(), 0.0
    ran = [0.0, 0.0, 0.0, 0.0]
    for window in [(0.0, 0.0, 0.0, 0.0), *shares]:
        ran = [total + 0.5 * share for total, share in zip(ran, window, strict=True)]
        load.feed(
            Worked(at, 0.0, ((ran[0], ran[1]),)),
            Worked(at, 0.0, ((ran[2], ran[3]),)),
        )
        at += 0.5
    return load


def test_a_secondary_that_never_rests_is_seen_also_on_a_starved_machine() -> None:
    assert feed(*[(0.03, 0.01, 0.97, 0.01)] * 4).spinning == 4
    assert (
        feed(*[(0.06, 0.13, 0.29, 0.67)] * 4).spinning == 4
    )  # measured with six helpers beside it
    assert feed(*[(0.10, 0.01, 0.0, 0.0)] * 4).halted == 4


@pytest.mark.parametrize(
    "sound",
    [
        (0.22, 0.17, 0.27, 0.16),
        (0.95, 0.02, 0.97, 0.02),  # both work
        (0.12, 0.10, 0.20, 0.75),  # only the secondary's host is busy
        (0.30, 0.10, 0.95, 0.04),  # its host is three times as slow
        (0.02, 0.30, 0.02, 0.95),
        (0.00, 0.00, 0.00, 0.00),  # both sleep
        (0.005, 0.0, 0.0, 0.0),
        (0.30, 0.60, 0.05, 0.90),
    ],
)
def test_what_both_do_or_a_slow_host_does_is_no_sign(
    sound: tuple[float, float, float, float],
) -> None:
    load = feed(*[sound] * 20)
    assert (load.spinning, load.halted) == (0, 0)


def test_one_window_of_rest_ends_the_count() -> None:
    spin, rest = (0.03, 0.01, 0.97, 0.01), (0.2, 0.1, 0.2, 0.1)
    assert feed(spin, spin, spin, rest).spinning == 0
    assert feed(spin, spin, rest, spin).spinning == 1


def test_the_time_in_which_checkpoints_hold_the_guest_does_not_count() -> None:
    load = ProcessorLoad()
    load.feed(Worked(0.0, 0.0, ((0.0, 0.0),)), Worked(0.0, 0.0, ((0.0, 0.0),)))
    load.feed(Worked(1.0, 0.5, ((0.02, 0.0),)), Worked(1.0, 0.5, ((0.49, 0.0),)))
    assert load.spinning == 1


def test_too_short_a_window_waits_for_the_next() -> None:
    load = ProcessorLoad()
    zero = Worked(0.0, 0.0, ((0.0, 0.0),))
    load.feed(zero, zero)
    for at_s in (0.1, 0.2):
        assert not load.feed(Worked(at_s, 0.0, ((0.0, 0.0),)), Worked(at_s, 0.0, ((at_s, 0.0),)))
    assert load.feed(Worked(0.3, 0.0, ((0.0, 0.0),)), Worked(0.3, 0.0, ((0.3, 0.0),)))
    assert load.spinning == 1


# registers


Look = tuple[bool, bool, int, float]
SPINS: list[Look] = [(False, False, 7, 0.01 * n) for n in range(PROOF_LOOKS)]
WELL: list[Look] = [(True, False, 7, 0.01 * n) for n in range(PROOF_LOOKS)]


def stuck(*stretches: Sequence[Look]) -> set[int]:
    """What is proven of one processor at several looks in stretches between checkpoints.

    A look: interrupts, halted, page, how long it ran so far.
    """
    seen = Stuck()
    for number, stretch in enumerate(stretches):
        for look in stretch:
            seen.feed(number, [Processor(*look)])
    return seen.proven()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (SPINS, {0}),
        ([(False, True, 7, 1.0)] * 10, {0}),  # halted for ever
        ([(True, True, 7, 1.0)] * 10, set()),  # idle
        ([(False, False, 7, 1.0)] * 10, set()),  # starved in a critical section
        ([(False, False, 7, 1.0 + 0.0005 * n) for n in range(10)], set()),  # the same
        ([(False, False, n % 3, 0.01 * n) for n in range(10)], set()),  # it works
        ([(n == 9, False, 7, 0.01 * n) for n in range(10)], set()),
        ([(False, n == 5, 7, 0.01 * n) for n in range(10)], set()),
    ],
)
def test_a_processor_is_stuck_that_stays_in_one_place_and_hears_nothing(
    seen: list[Look], expected: set[int]
) -> None:
    assert stuck(seen) == expected


def test_where_checkpoints_come_often_three_stretches_that_end_so_are_a_proof() -> None:
    """A checkpoint makes its processors those of the primary, until the next interrupt."""
    short = [*WELL[:2], *SPINS[2:5]]
    assert stuck(short, short) == set()
    assert stuck(short, short, short) == {0}
    assert stuck(short, WELL[:1], short, short) == {0}  # too few looks say nothing
    assert stuck(short, short, WELL, short) == set()
    assert stuck(short, short, SPINS[:2]) == set()


def test_each_processor_is_judged_for_itself() -> None:
    seen = Stuck()
    for _ in range(PROOF_LOOKS):
        seen.feed(1, [Processor(True, True, 1, 1.0), Processor(False, True, 2, 1.0)])
    assert seen.proven() == {1} and seen.seen_so(1) == {1} and seen.seen_so(2) == set()
    seen.feed(1, [])
    assert Stuck().proven() == set()


# together


@pytest.mark.parametrize(
    "contrast",
    [
        Contrast(unmatched=10_000),  # a bulk stream, or a slow secondary
        Contrast(spinning=PROOF_WINDOWS - 1, unmatched=100),
        Contrast(spinning=100, unmatched=PROOF_UNMATCHED - 1),
        Contrast(halted=100),
        Contrast(others=1000),
    ],
)
def test_a_sign_that_a_sound_secondary_may_show_is_no_proof(contrast: Contrast) -> None:
    assert diagnose(replace(observe(), contrast=contrast)).diagnosis is Diagnosis.HEALTHY


PROVEN = (
    Contrast(events=("reset",)),
    Contrast(lines=("BUG: unable to handle page fault",)),
    Contrast(deaf=True),
    Contrast(halted=PROOF_WINDOWS, unmatched=PROOF_UNMATCHED),
    Contrast(spinning=PROOF_WINDOWS, unmatched=PROOF_UNMATCHED),
)


def decided(seen: Observation) -> tuple[Diagnosis, Action, str | None]:
    finding = diagnose(seen)
    decision = decide(finding, seen, Policy(), paused=False, pair="web")
    return finding.diagnosis, decision.action, decision.lost


@pytest.mark.parametrize("contrast", PROVEN)
def test_a_diverged_secondary_is_given_up_and_never_promoted_by_itself(
    contrast: Contrast,
) -> None:
    diverged = replace(observe(), contrast=contrast)
    assert decided(diverged) == (Diagnosis.SECONDARY_DIVERGED, Action.FAIL_OVER, "b")
    lost: tuple[Callable[[], Observation], ...] = (
        lambda: observe(replace(PRIMARY, life=Life.DEAD)),
        lambda: observe(replace(PRIMARY, life=Life.STOPPED, rescue_silent_ms=500.0)),
        lambda: observe(replace(PRIMARY, notices=("local-write-error",))),
        lambda: observe(replace(PRIMARY, life=Life.DEAD), SECONDARY, Protection.FAILOVER),
    )
    for of in lost:
        _, action, node = decided(replace(of(), contrast=contrast))
        assert (action, node) == (Action.WAIT, None)
    dead = replace(observe(replace(PRIMARY, life=Life.DEAD)), contrast=contrast)
    reason = decide(diagnose(dead), dead, Policy(), paused=False, pair="web").reason
    assert "`coloctl stop web --force`" in reason and "node a" in reason.lower()


def test_a_dead_secondary_needs_no_other_reason() -> None:
    dead = observe(b=replace(SECONDARY, life=Life.DEAD))
    assert decided(replace(dead, contrast=PROVEN[0]))[0] is Diagnosis.SECONDARY_DEAD


@pytest.mark.parametrize(
    ("period_ms", "expected"),
    [(400.0, 8), (300.0, 8), (110.0, 0), (1000.0, 0), (950.0, 0), (900.0, 7)],
)
def test_a_checkpoint_counts_where_an_answer_waited_for_its_twin(
    period_ms: float, expected: int
) -> None:
    assert next_unmatched(7, period_ms=period_ms, delay_ms=1000, timeout_ms=300) == expected


def test_a_delay_as_short_as_the_timeout_tells_nothing() -> None:
    assert next_unmatched(7, period_ms=300, delay_ms=300, timeout_ms=300) == 0
