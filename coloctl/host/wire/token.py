"""Represent descriptors that another machine holds by descriptors of this one.

Made by `host.remote` for channels and scratches there; `host.wire.relay` recognizes one that was
passed with SCM_RIGHTS.

Invariant: a descriptor is a token by what is in it, so that a copy is one as well, also after the
original was closed. The key is random; no other program's memory file is mistaken for one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from typing import Self

_HOLD = struct.Struct("!I")
_KEY_BYTES = 16


class Token:
    """A descriptor here that stands for the hold ``hold`` there; closing it releases no hold."""

    def __init__(self, descriptor: int, hold: int) -> None:
        self.hold = hold
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._descriptor

    def close(self) -> None:
        """Close this copy of the descriptor; harmless a second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Tokens:
    """The tokens of one session: a descriptor of another session, or of this machine, is none."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)

    def make(self, hold: int) -> Token:
        """Make a token for a hold; raises OSError where no descriptor is free."""
        descriptor = os.memfd_create(f"hold-{hold}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, self._key + _HOLD.pack(hold))
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        return Token(descriptor, hold)

    def hold_of(self, descriptor: int) -> int | None:
        """Return the hold that the descriptor stands for; None where it is no token of these."""
        try:
            content = os.pread(descriptor, _KEY_BYTES + _HOLD.size + 1, 0)
        except OSError:  # a socket or a pipe has no position
            return None
        if len(content) != _KEY_BYTES + _HOLD.size or content[:_KEY_BYTES] != self._key:
            return None
        return int(_HOLD.unpack(content[_KEY_BYTES:])[0])
