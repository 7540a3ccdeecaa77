"""Define the exceptions: *refused*, *unreachable* and *unknown* are never the same class.

Used by every layer.

::

    ColoctlError
     ├─ UsageError                        the command line does not fit together
     ├─ SpecError(key, sentence)          a pair file is wrong; the operator can fix it
     ├─ PreconditionFailed                a named precondition of this host or pair does not hold
     │   └─ HostOutOfReach                another machine cannot be asked just now
     ├─ NoSuchPair                        no pair of that name has a supervisor here
     ├─ PairBusy                          the pair already runs, or another act is under way
     ├─ NotProtected                      the pair is not in the state that was asked for
     │   └─ RunsAlone                     the guest was started and serves, but is not protected
     ├─ NotConfirmed                      a person was asked again and did not confirm
     ├─ LaunchError                       QEMU would not start
     ├─ MonitorError
     │   ├─ Unreachable                   no process answers there: no socket, refused, closed
     │   ├─ CommandRefused                QEMU answered with an error: the command did not happen
     │   ├─ OutcomeUnknown                sent, never answered: it may or may not have happened
     │   └─ DeadlineMissed                what was waited for did not come in time
     │       └─ StillAtWork               the verb's own wait ended; the supervisor goes on
     ├─ UnsupportedQEMU(missing)          this binary misses, or fails at, what COLO needs
     ├─ ReplicationError(stage)
     │   ├─ ResyncFailed
     │   ├─ MigrationFailed
     │   └─ CheckpointStalled
     ├─ FailoverRefused                   not fenced, not ours, not possible
     ├─ FencingFailed(node)               no proof of death: promotion must not happen
     ├─ ScenarioError(path, sentence)
     ├─ LabError                          namespaces, taps, guest image of the lab
     └─ ProvisionError                    a download or an unpacking did not work

Every message is one sentence for a person; ``hint`` is the next thing to try. ``code`` names the
class in JSON documents and on the control socket; ``exit_code`` is what the process ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


def _ended(text: str) -> str:
    """Return text of another program with the full stop that ends a sentence."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


class ColoctlError(Exception):
    """An error that an operator should read: one sentence, and a hint where there is one."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ColoctlError):
    """The command line asks for something that does not fit together."""

    code = "usage"
    exit_code = 2


class SpecError(ColoctlError):
    """A pair file is wrong at ``key`` (dotted, as written in the file)."""

    code = "spec"
    exit_code = 2

    def __init__(self, key: str, sentence: str, *, hint: str | None = None) -> None:
        super().__init__(f"{key}: {sentence}" if key else sentence, hint=hint)
        self.key = key
        self.sentence = sentence


class PreconditionFailed(ColoctlError):
    """A precondition that `doctor` knows by name does not hold; nothing was started."""

    code = "precondition"


class HostOutOfReach(PreconditionFailed):
    """The machine of a node cannot be asked just now; ``sent``: what was asked may yet happen."""

    code = "host-out-of-reach"

    def __init__(self, message: str, *, sent: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


class NoSuchPair(ColoctlError):
    """No pair of that name has a supervisor or a state directory here."""

    code = "no-such-pair"
    exit_code = 4


class PairBusy(ColoctlError):
    """The pair already runs, or another act on it is under way."""

    code = "busy"
    exit_code = 5


class NotProtected(ColoctlError):
    """The pair is not in the state that was asked for."""

    code = "not-protected"
    exit_code = 3


class RunsAlone(NotProtected):
    """The guest was started and serves its clients, but could not be protected."""

    code = "runs-alone"


class NotConfirmed(ColoctlError):
    """A person was asked whether it is meant, and did not confirm it; nothing was done."""

    code = "not-confirmed"
    exit_code = 5


class LaunchError(ColoctlError):
    """QEMU would not start: carries the exit code, the whole command line and the last output."""

    code = "launch"

    def __init__(
        self,
        message: str,
        *,
        node: str = "",
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        tail: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.node = node
        self.argv = tuple(argv)
        self.status = exit_code
        self.tail = tail


class MonitorError(ColoctlError):
    """A QMP monitor did not do what was asked of it."""

    code = "monitor"


class Unreachable(MonitorError):
    """No process answers there: no socket, refused, or closed before the command was sent."""

    code = "unreachable"


class CommandRefused(MonitorError):
    """QEMU answered with an error, so the command did not happen.

    ``error_class`` is QMP's error class (``GenericError``, ``DeviceNotFound``, ...).
    """

    code = "refused-by-qemu"

    def __init__(self, command: str, desc: str, *, error_class: str = "GenericError") -> None:
        super().__init__(f"QEMU refused {command}: {_ended(desc)}")
        self.command = command
        self.desc = desc
        self.error_class = error_class


class OutcomeUnknown(MonitorError):
    """The command was sent and never answered: query the state again before deciding anything."""

    code = "outcome-unknown"

    def __init__(self, command: str, why: str) -> None:
        super().__init__(f"{command} was sent but its outcome is unknown: {_ended(why)}")
        self.command = command


class DeadlineMissed(MonitorError):
    """The awaited fact did not come in time."""

    code = "timeout"
    exit_code = 6


class StillAtWork(DeadlineMissed):
    """The client's own wait for an answer ended; the act that it asked for may go on.

    Never sent by a supervisor: an act that failed at a deadline of its own is `DeadlineMissed`.
    """

    code = "still-at-work"


class UnsupportedQEMU(ColoctlError):
    """The binary, accelerator or machine type misses, or fails at, what COLO needs."""

    code = "unsupported-qemu"

    def __init__(
        self, message: str, *, missing: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.missing = tuple(missing)


class ReplicationError(ColoctlError):
    """Replication stopped at ``stage`` (a state of the pair's protection)."""

    code = "replication"
    exit_code = 3

    def __init__(self, message: str, *, stage: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage


class ResyncFailed(ReplicationError):
    """The disks could not be brought in sync."""

    code = "resync-failed"


class MigrationFailed(ReplicationError):
    """The first migration did not end in COLO."""

    code = "migration-failed"


class CheckpointStalled(ReplicationError):
    """No checkpoint completed within its deadline."""

    code = "checkpoint-stalled"


class FailoverRefused(ColoctlError):
    """The failover would be wrong: not fenced, not ours, or no valid survivor."""

    code = "failover-refused"
    exit_code = 5


class FencingFailed(ColoctlError):
    """There is no proof that ``node`` is down, so nothing may be promoted.

    ``out_of_reach``: its machine could not be asked.
    """

    code = "fencing-failed"
    exit_code = 7

    def __init__(
        self, node: str, message: str, *, hint: str | None = None, out_of_reach: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.node = node
        self.out_of_reach = out_of_reach


class GuestCutOff(ColoctlError):
    """The pair was stopped, and its guest had not powered itself off in time."""

    code = "cut-off"
    exit_code = 8


class ScenarioError(ColoctlError):
    """A scenario file is wrong at ``path``."""

    code = "scenario"
    exit_code = 2

    def __init__(self, path: str, sentence: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {sentence}", hint=hint)
        self.path = path


class LabError(ColoctlError):
    """The lab (namespaces, bridge, taps, guest) could not be built or used."""

    code = "lab"


class ProvisionError(ColoctlError):
    """A download or an unpacking did not work; what was fetched so far is kept for the next try."""

    code = "provision"
