"""Parse the address of a machine that is reached over ssh: ``ssh://[user@]name[:port]``.

Called by `pairfile.values` when a pair file is read, by `host` when the machine is opened, and by
`colo.tls` and `supervisor.given_up` for the name of the machine.
Invariant: no part of an address can be taken for an option of ssh. Name and user begin with a
letter, a digit, or for a user an underscore.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

SCHEME = "ssh://"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PARTS = re.compile(r"(?:([^@]*)@)?(\[[^]]*\]|[^:]*)(?::(.*))?")
_PORT_MAX = 65535


@dataclass(frozen=True)
class SshAddress:
    """A machine as ssh is asked for it; what is empty or None is left to the ssh configuration."""

    name: str  #: a host name, an alias of the ssh configuration, or an IP address
    user: str = ""
    port: int | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        port = "" if self.port is None else f":{self.port}"
        return f"{SCHEME}{self.user}{'@' if self.user else ''}{name}{port}"


def parse(spec: str) -> SshAddress:
    """Parse ``ssh://[user@]name[:port]``; raises `ValueError` with a sentence."""
    rest = spec.removeprefix(SCHEME)
    parts = _PARTS.fullmatch(rest)
    if rest == spec or parts is None:
        raise ValueError(f'"{spec}" is not an address of the form ssh://[user@]name[:port].')
    user, name, port = parts.groups()
    if user is not None and not _USER.fullmatch(user):
        raise ValueError(f'"{spec}" has no valid user before the @.')
    return SshAddress(_name(name, spec), user or "", None if port is None else _port(port, spec))


def _name(name: str, spec: str) -> str:
    """Check the name of the machine, or the IPv6 address in brackets; raises `ValueError`."""
    if name.startswith("["):
        try:
            return str(IPv6Address(name[1:-1]))
        except ValueError:
            raise ValueError(f'"{spec}" has no IPv6 address in its brackets.') from None
    if not _NAME.fullmatch(name):
        raise ValueError(f'"{spec}" does not name a machine.')
    return name


def _port(text: str, spec: str) -> int:
    """Read a TCP port; raises `ValueError`."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= _PORT_MAX:
        raise ValueError(f'"{spec}" has no TCP port after its last colon.')
    return int(text)
