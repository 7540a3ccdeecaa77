"""Compare the clock of another machine with this one's.

Called by `colo.tls` before certificates are used there, and by `check.machine_there`; asks through
`host.base`. Nothing of a pair depends on the wall clock but the validity of certificates.

Invariant: a difference that the answer's own time on its way could explain counts as none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from coloctl.clock import CLOCK
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host

#: Logs and records of two machines are compared by their clocks; below this nothing is reported.
NOTICED_S = 1.0
#: The command that is asked for the time answers at once, seconds.
_ASK_DEADLINE_S = 10.0
SET_CLOCK = "`timedatectl set-ntp true` there"


@dataclass(frozen=True)
class ClockOffset:
    """The difference of a machine's clock from this one's."""

    machine: str
    seconds: float  #: that clock less this one
    doubt_s: float  #: half of the time that the answer took

    @property
    def differs(self) -> bool:
        """True where the clocks differ by more than is worth a word."""
        return abs(self.seconds) > max(NOTICED_S, self.doubt_s)

    @property
    def sentence(self) -> str:
        """The difference, for a person."""
        way = "fast" if self.seconds > 0 else "slow"
        return f"The clock of {self.machine} is {abs(self.seconds):.0f} s {way}, by this machine's."

    def there(self, now: datetime) -> datetime:
        """Return what that clock shows when it is ``now`` here."""
        return now + timedelta(seconds=self.seconds)


async def offset(host: Host) -> ClockOffset:
    """Ask for the time there; raises `PreconditionFailed` where the answer is none."""
    before = CLOCK.now()
    done = await host.run(["date", "+%s.%N"], deadline_s=_ASK_DEADLINE_S)
    doubt_s = (CLOCK.now() - before) / 2
    try:
        seconds = float(done.stdout) - (datetime.now(UTC).timestamp() - doubt_s)
    except ValueError:
        raise PreconditionFailed(
            f"`date` on {host.machine.name} shows no time, but {done.stdout[:80]!r}.",
            hint="`date +%s.%N` there shows the seconds since 1970",
        ) from None
    return ClockOffset(host.machine.name, seconds, doubt_s)
