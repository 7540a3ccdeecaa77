"""Whether a secondary's guest is still the guest, told from what both guests do; pure.

`supervisor.contrast` feeds the trackers of this module, `ha.analysis` asks `proofs`. Invariant:
what a sound secondary may do never accuses it. It runs ahead of the primary or behind it, at other
moments, with other timestamps; it repeats after each checkpoint what it had done before; on a
starved machine it is late. So only what the primary does not do within a grace counts, and signs
that a slow secondary shares with a ruined one count together only.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coloctl.model.observation import Contrast
from coloctl.model.pair import NodeName

#: The primary has so long to do the same, seconds; and it has taken so many checkpoints meanwhile,
#: or had so much longer. Both guests of a sound pair come within 150 ms of each other
#: (docs/qemu.md, "How a guest ends in COLO"), and a checkpoint may lie between.
GRACE_S, GRACE_CHECKPOINTS, GRACE_LONGEST_S = 1.0, 2, 3.0
#: What the primary did before counts for so long, seconds: the secondary may be behind it.
EXCUSED_S = 5.0
#: What follows a reset that the monitor asked for, seconds: the firmware resets once more.
ORDERED_S = 2.0

#: A look at the processors is worth something after so much time in which both guests ran, seconds.
WINDOW_S = 0.25
#: A processor that never rests, of its time (what it waited for a processor of the host counts, so
#: that a busy host hides nothing); the primary's rests for half of it or more, and used a quarter
#: of the time or less. Measured on a sound pair: 0.47 at most on both sides, within 10 % of each
#: other; on a secondary that spins: 0.98 against 0.04 (docs/detection.md).
NEVER_RESTS, RESTS, TIMES = 0.9, 0.5, 4.0
#: A guest that does nothing uses less than a tenth of what the primary's does, which works.
NOTHING, SOMETHING = 0.1, 0.01
#: So many windows in a row are a reason to look at the registers, and so many are a proof, where
#: as many checkpoints in a row came because an answer had no twin.
SUSPECT_WINDOWS, PROOF_WINDOWS, PROOF_UNMATCHED = 2, 4, 4
#: So many lines while the primary is silent, with as many such checkpoints, are a proof.
PROOF_LINES, LINES_UNMATCHED = 3, 3

#: A checkpoint that came this much earlier than was due was forced, and one that came when this
#: much of the comparison's timeout had passed was forced because an answer waited for its twin.
EARLY, WAITED = 0.85, 0.9

#: Lines and shapes that are remembered of one console.
MEMORY = 20_000
#: Longer lines are cut, bytes.
LONGEST = 400

#: What a kernel or its init says when memory or code is damaged. A group matches the same text for
#: the same kind of damage.
DAMAGE = re.compile(
    rb"(BUG: |kernel BUG at|Oops|general protection|invalid opcode|unable to handle"
    rb"|Kernel panic|double fault|stack segment|segfault at|traps: |Bad page (?:state|map)"
    rb"|list_(?:add|del) corruption|is not a head|EXT4-fs error|corruption"
    rb"|Internal error|BTRFS (?:critical|error)|I/O error|Machine check|Hardware Error"
    rb"|Attempted to kill|double free|stack smashing|core dumped|terminated by signal"
    rb"|Segmentation fault|Illegal instruction|Bus error|scheduling while atomic"
    rb"|unexpected exception|Fatal trap|^panic: |Freezing execution|invalid pointer)"
)
#: What a guest says because it was late, and not because it is damaged.
LATENESS = re.compile(
    rb"lockup|rcu|blocked for more than|clocksource|hrtimer: interrupt took"
    rb"|transmit queue|RT throttling|watchdog|timekeeping|perf: interrupt took|timed out",
    re.IGNORECASE,
)
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_STAMP = re.compile(rb"^\s*(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[CT]\d+\])?\s*")
_NUMBER = re.compile(rb"\b(?:0x)?[0-9a-fA-F]*\d[0-9a-fA-F]*\b")

#: QEMU's events of a guest, by the name under which they count: of one kind, any excuses another.
DEEDS: Mapping[str, str] = {
    "RESET": "reset",
    "GUEST_PANICKED": "panic",
    "GUEST_CRASHLOADED": "panic",
    "WATCHDOG": "watchdog",
    "MEMORY_FAILURE": "memory",
}
#: The event of a supervisor that found the divergence and then died.
EARLIER = "earlier"
_SAID: Mapping[str, str] = {
    "reset": "Node {s}'s guest was reset by itself, and node {p}'s was not.",
    "panic": "Node {s}'s guest says that its kernel panicked, and node {p}'s does not.",
    "watchdog": "Node {s}'s watchdog expired, and node {p}'s did not.",
    "memory": "Node {s}'s host says that memory of the guest failed, and node {p}'s does not.",
    EARLIER: "An earlier supervisor found that node {s}'s guest was not node {p}'s any more.",
}


def proofs(contrast: Contrast, primary: NodeName, secondary: NodeName) -> tuple[str, ...]:
    """Say why the guest of ``secondary`` is not that of ``primary``; empty where nothing does."""
    evidence = [_SAID[deed].format(s=secondary, p=primary) for deed in contrast.events]
    evidence += [
        f"Node {secondary}'s console says '{line}', and node {primary}'s never did."
        for line in contrast.lines
    ]
    unmatched = contrast.unmatched >= PROOF_UNMATCHED
    how = ""
    if contrast.spinning >= SUSPECT_WINDOWS and (contrast.deaf or _proven(contrast.spinning)):
        how = f"never rests, while node {primary}'s does"
    elif contrast.halted >= SUSPECT_WINDOWS and (contrast.deaf or _proven(contrast.halted)):
        how = f"does nothing, while node {primary}'s works"
    if how and contrast.deaf:
        evidence.append(
            f"A processor of node {secondary}'s guest {how}, and takes no interrupt at any look."
        )
    elif how and unmatched:
        evidence.append(
            f"A processor of node {secondary}'s guest {how}, and the last {contrast.unmatched} "
            "checkpoints came because an answer had no twin."
        )
    if contrast.others >= PROOF_LINES and contrast.unmatched >= LINES_UNMATCHED:
        evidence.append(
            f"Node {secondary}'s guest wrote {contrast.others} lines to its console while node "
            f"{primary}'s wrote none, and the last {contrast.unmatched} checkpoints came because "
            "an answer had no twin."
        )
    return tuple(evidence)


def _proven(windows: int) -> bool:
    return windows >= PROOF_WINDOWS


def suspected(contrast: Contrast) -> bool:
    """Whether the processors of both guests differ enough to look closer."""
    return max(contrast.spinning, contrast.halted) >= SUSPECT_WINDOWS


# -- time


@dataclass(frozen=True)
class Moment:
    """When something happened, by the clock and by the primary's checkpoints."""

    at_s: float
    checkpoints: int

    def ripe(self, now: Moment) -> bool:
        """Whether the primary has had its time to do the same."""
        passed_s = now.at_s - self.at_s
        taken = now.checkpoints - self.checkpoints
        return passed_s >= GRACE_LONGEST_S or (passed_s >= GRACE_S and taken >= GRACE_CHECKPOINTS)


# -- events


class Deeds:
    """Which of QEMU's events of a guest only the secondary sent."""

    def __init__(self) -> None:
        self.alone: dict[str, None] = {}
        self._pending: list[tuple[str, Moment]] = []
        self._primary_s = self._ordered_s = float("-inf")

    @property
    def undecided(self) -> bool:
        """Whether the primary may still do what the secondary did."""
        return bool(self._pending)

    def primary(self, deed: str, at_s: float) -> None:
        """Note that the primary's guest did this: what the secondary does about now is the same.

        A reset follows a panic, and a checkpoint may swallow one of the two.
        """
        self._primary_s = at_s
        self._pending.clear()

    def secondary(self, deed: str, moment: Moment, *, ordered: bool = False) -> None:
        """Note that the secondary's guest did this; ``ordered``: its monitor asked for it."""
        if ordered:
            self._ordered_s = moment.at_s
        elif moment.at_s - self._ordered_s >= ORDERED_S and not self._excused(moment):
            self._pending.append((deed, moment))

    def _excused(self, moment: Moment) -> bool:
        return moment.at_s - self._primary_s < EXCUSED_S

    def judge(self, now: Moment) -> None:
        """Hold against the secondary what the primary has had its time for."""
        ripe = [deed for deed, moment in self._pending if moment.ripe(now)]
        self._pending = [one for one in self._pending if not one[1].ripe(now)]
        self.alone.update(dict.fromkeys(ripe))


# -- consoles


def shape(line: bytes) -> bytes:
    """Reduce a line to what both guests of a sound pair write alike: no stamps, no numbers."""
    bare = _STAMP.sub(b"", _ESCAPES.sub(b"", line[:LONGEST]))
    return b" ".join(_NUMBER.sub(b"#", bare).split())


@dataclass
class _Unmet:
    """A line of the secondary that the primary has not written yet."""

    shape: bytes
    line: bytes
    moment: Moment


class Words:
    """Which lines only the secondary wrote to its console."""

    def __init__(self) -> None:
        self.damage: dict[str, None] = {}  #: those about damage
        self.others = 0  #: of any kind, while the primary wrote none
        self._known: dict[bytes, None] = {}  # shapes of the primary
        self._marks: set[bytes] = set()  # kinds of damage of which the primary wrote
        self._unmet: deque[_Unmet] = deque(maxlen=1000)
        self._primary_s = float("-inf")

    @property
    def undecided(self) -> bool:
        """Whether the primary may still write a line about damage that the secondary wrote."""
        return any(DAMAGE.search(one.line) for one in self._unmet)

    def before(self, lines: Iterable[bytes]) -> None:
        """Note what the primary wrote before this session."""
        for line in lines:
            self._know(shape(line))

    def primary(self, lines: Sequence[bytes], at_s: float) -> None:
        """Note what the primary wrote."""
        for line in lines:
            self._know(shape(line))
            self._marks |= {found.lower() for found in DAMAGE.findall(line)}
        if lines:
            self._primary_s = at_s

    def missed(self, at_s: float) -> None:
        """Note that some of what the primary wrote was not read: it may have been anything."""
        self._primary_s = at_s
        self._unmet.clear()

    def secondary(self, lines: Iterable[bytes], moment: Moment) -> None:
        """Note what the secondary wrote."""
        for line in lines:
            like = shape(line)
            if like and like not in self._known and not LATENESS.search(line):
                self._unmet.append(_Unmet(like, line[:LONGEST], moment))

    def judge(self, now: Moment) -> None:
        """Hold against the secondary what the primary has had its time for."""
        self._unmet = deque(
            (one for one in self._unmet if one.shape not in self._known), maxlen=self._unmet.maxlen
        )
        while self._unmet and self._unmet[0].moment.ripe(now):
            one = self._unmet.popleft()
            marks = {found.lower() for found in DAMAGE.findall(one.line)}
            if marks and not marks & self._marks:
                self._hold(one.line)
            elif one.moment.at_s - self._primary_s >= EXCUSED_S:
                self.others += 1

    def _hold(self, line: bytes) -> None:
        text = _STAMP.sub(b"", _ESCAPES.sub(b"", line)).strip().decode(errors="replace")
        if len(self.damage) < 3:  # the first ones tell most
            self.damage[text[:120]] = None

    def _know(self, like: bytes) -> None:
        self._known.pop(like, None)
        self._known[like] = None
        if len(self._known) > MEMORY:
            del self._known[next(iter(self._known))]


# -- processors


@dataclass(frozen=True)
class Worked:
    """What the processors of one guest have done up to a moment, seconds."""

    at_s: float
    held_s: float  #: how long checkpoints have held the guest
    threads: tuple[tuple[float, float], ...]  #: of each: it ran, and it waited to run


@dataclass(frozen=True)
class _Share:
    """Of the time in which the guest was not held, between two moments."""

    long_s: float
    busiest: float  #: the processor that ran or waited most
    most: float  #: the processor that ran most
    all: float  #: all of them together, run only


def _share(before: Worked, after: Worked) -> _Share:
    long_s = (after.at_s - before.at_s) - (after.held_s - before.held_s)
    ran = [new[0] - old[0] for old, new in zip(before.threads, after.threads, strict=True)]
    wanted = [sum(new) - sum(old) for old, new in zip(before.threads, after.threads, strict=True)]
    span = max(long_s, 1e-6)
    return _Share(long_s, max(wanted) / span, max(ran) / span, sum(ran) / span)


@dataclass
class Load:
    """How many windows in a row only the secondary's processors never rest, or do nothing."""

    spinning: int = 0
    halted: int = 0
    _last: tuple[Worked, Worked] | None = field(default=None, repr=False)

    def feed(self, primary: Worked, secondary: Worked) -> bool:
        """Compare what both did since the last window; False where that is too little to tell."""
        last = self._last
        same = last is not None and all(
            len(old.threads) == len(new.threads) and new.threads
            for old, new in zip(last, (primary, secondary), strict=True)
        )
        if last is None or not same:
            self._last = (primary, secondary)
            return False
        one, two = _share(last[0], primary), _share(last[1], secondary)
        if min(one.long_s, two.long_s) < WINDOW_S:
            return False
        self._last = (primary, secondary)
        spins = two.busiest >= NEVER_RESTS and one.busiest <= RESTS
        self.spinning = self.spinning + 1 if spins and two.most >= TIMES * one.most else 0
        idle = two.busiest <= NOTHING * one.busiest and one.all >= SOMETHING
        self.halted = self.halted + 1 if idle else 0
        return True


# -- checkpoints


def next_unmatched(so_far: int, *, period_ms: float, delay_ms: float, timeout_ms: float) -> int:
    """Count the checkpoints in a row that came because an answer had no twin.

    Where the delay is no longer than the comparison's timeout the two cannot be told apart.
    """
    waited = period_ms >= WAITED * timeout_ms
    early = period_ms <= EARLY * delay_ms
    return so_far + 1 if waited and early else 0
