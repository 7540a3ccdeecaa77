"""Run a program on a host of the lab that acts for a fault until the fault is healed.

Called by `chaos.faults.guest` and `chaos.faults.stranger`, which need another process, user or
network namespace than the engine's; calls `lab.network` to start it. The program prints "ready"
once it acts, works until its standard input ends, and prints its result.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Self

from coloctl.lab.network import Lab


class Child:
    """One program that acts for a fault and is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.output: str | None = None  #: what it printed, once it was ended

    @classmethod
    def begin(cls, lab: Lab, role: str, argv: Sequence[str]) -> Self | None:
        """Start ``argv`` on the host of ``role``; None where it ends without being ready."""
        process = lab.popen(
            argv,
            role,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() == "ready":
            return cls(process)
        process.kill()
        process.communicate()
        return None

    def end(self, patience_s: float) -> None:
        """End the program, and keep what it printed; it is killed after ``patience_s``."""
        if self.output is not None:
            return
        try:
            self.output = self._process.communicate("", patience_s)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.output = self._process.communicate()[0]
