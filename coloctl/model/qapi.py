"""Define enums for the QAPI strings of QEMU that coloctl reads.

Used by `qmp.wait`, `colo.protect` and `ha.failover` for what QEMU answers. Source:
``query-qmp-schema`` of QEMU 7.2.22, 10.0.13 and 11.1.3 (``qmp_schemas/``).

Invariant: a value that a newer QEMU adds reads as the enum's ``UNKNOWN`` member; it never raises.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class QapiEnum(StrEnum):
    """A StrEnum that maps strings it does not know to its own ``UNKNOWN`` member."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls["UNKNOWN"]


class RunState(QapiEnum):
    """``query-status``: what the guest's vCPUs are doing."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"  #: waiting for an incoming migration, or receiving one
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"  #: started with -S, never run
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"  #: stopped for a checkpoint
    UNKNOWN = "unknown"


class MigrationStatus(QapiEnum):
    """``query-migrate`` and the ``MIGRATION`` event."""

    NONE = "none"
    SETUP = "setup"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILING = "failing"  #: on its way to failed, from 11.1 on
    FAILED = "failed"
    COLO = "colo"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    WAIT_UNPLUG = "wait-unplug"
    UNKNOWN = "unknown"


class COLOMode(QapiEnum):
    """``query-colo-status``: which side of a pair this QEMU is."""

    NONE = "none"
    PRIMARY = "primary"
    SECONDARY = "secondary"
    UNKNOWN = "unknown"


class JobStatus(QapiEnum):
    """``query-jobs`` and ``JOB_STATUS_CHANGE``."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"  #: a mirror whose target follows every write
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"
    UNKNOWN = "unknown"
