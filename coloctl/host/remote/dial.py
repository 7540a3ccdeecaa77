"""Describe how the agent of a machine is reached: the command to run, and what its failure means.

`host.remote.contact` runs the command and speaks with the agent over its standard input and output.
`SshDial` makes it for ssh, with the user's own configuration, keys and proxies.

Invariant: each failure is one sentence that names the machine, and its hint is a command to type.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from coloctl.errors import HostOutOfReach
from coloctl.host.remote import loader
from coloctl.model.sshaddress import SshAddress

#: Another ssh than the one on PATH, with its first options, as words of a shell: `ssh -F FILE`.
SSH_VARIABLE = "COLOCTL_SSH"

#: ssh ends a connection after ten probes, one a second, that are not answered. Its session ends it
#: sooner (`contact.SILENCE_S`). But while the agent's program is sent, probes wait for their turn:
#: with a round trip of 2 s three of them were too few, and no first contact came about.
OPTIONS = (
    *("BatchMode=yes", "ServerAliveInterval=1", "ServerAliveCountMax=10", "ConnectTimeout=10"),
    # A connection that is shared with others shares one TCP stream, and ends with them.
    *("ControlMaster=no", "ControlPath=none"),
    *("ClearAllForwardings=yes", "ForwardAgent=no", "Compression=no", "LogLevel=ERROR"),
)

#: Interpreters to try there, the newest first; `loader` refuses one that is too old.
_PYTHONS = "python3.14 python3.13 python3.12 python3.11 python3"

#: POSIX sh in single quotes, for login shells that are none; there is no ' or ! in it. Each Python
#: is tried first: pyenv has a name on PATH for every version that any project uses. A failover may
#: wait for the agent: its session is weighed as `urgency.hasten_start` does, until it serves.
_COMMAND = (
    "exec /bin/sh -c 'echo -11 2>/dev/null >/proc/self/autogroup; "
    "for p in {pythons}; do $p -I -S -c 0 >/dev/null 2>&1 </dev/null && "
    'exec $p -I -S -c "import base64,sys,zlib;'
    'exec(zlib.decompress(base64.b64decode(sys.argv[1])))" {text}; '
    "done; echo COLOCTL-NOPYTHON'"
)

_NOT_FOUND = 127  #: exit code of a shell that found no such program


class Dial(Protocol):
    """A way to the agent of one machine."""

    name: str  #: the machine, for messages

    def argv(self) -> Sequence[str]:
        """Return the command whose standard input and output lead to the agent."""
        ...

    def failure(self, code: int | None, output: str) -> HostOutOfReach:
        """Explain why the command ended with ``code``, from what it wrote to standard error."""
        ...


class SshDial:
    """The agent of a machine that ssh reaches; it is sent there where it is not yet."""

    def __init__(self, address: SshAddress) -> None:
        self.name = address.name
        self._address = address

    def argv(self) -> Sequence[str]:
        """See `Dial.argv`."""
        options = [word for option in OPTIONS for word in ("-o", option)]
        where = self._where()
        return [*_ssh(), "-T", *options, "-e", "none", *where[:-1], "--", where[-1], command()]

    def failure(self, code: int | None, output: str) -> HostOutOfReach:
        """See `Dial.failure`."""
        if code == _NOT_FOUND:
            return HostOutOfReach(
                f"{self.name} has no program for its forced command: {_last_line(output)}.",
                hint="install coloctl there, or remove the forced command of this key",
            )
        for pattern, sentence, hint in _FAILURES:
            if found := re.search(pattern, output):
                names = {"name": self.name, "by_hand": self._by_hand(), "known": self._known()}
                names["why"] = next(filter(None, found.groups()), "").strip()
                return HostOutOfReach(sentence.format(**names), hint=hint.format(**names))
        return HostOutOfReach(
            ended(self.name, "ssh", code, output), hint=f"try `{self._by_hand()}`"
        )

    def _where(self) -> list[str]:
        """Return the words that name the machine, the name itself last."""
        port = [] if self._address.port is None else ["-p", str(self._address.port)]
        user = ["-l", self._address.user] if self._address.user else []
        return [*port, *user, self._address.name]

    def _by_hand(self) -> str:
        """Return the command by which an operator tries the same."""
        return " ".join(["ssh", *self._where(), "true"])

    def _known(self) -> str:
        """Return the name under which ssh keeps the key of this machine."""
        port = self._address.port
        return self.name if port in {None, 22} else f"[{self.name}]:{port}"


def command() -> str:
    """Return the command for the other machine: it starts `loader` in a Python of that machine."""
    text = zlib.compress(Path(loader.__file__).read_bytes(), 9)
    return _COMMAND.format(pythons=_PYTHONS, text=base64.b64encode(text).decode())


def _ssh() -> list[str]:
    return shlex.split(os.environ.get(SSH_VARIABLE, "")) or ["ssh"]


def ended(name: str, program: str, code: int | None, output: str) -> str:
    """Return the sentence for a failure that no table explains."""
    last = _last_line(output)
    how = "was ended" if code is None or code < 0 else f"ended with exit code {code}"
    return f"The connection to {name} is gone: {program} {how}{f': {last}' if last else ''}."


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""


#: What ssh writes to standard error (9.2 and 10.0), the sentence for it, and its hint. The first
#: that is found counts.
_FAILURES = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The host key of {name} is another one than this machine knows.",
        "if {name} was installed again: `ssh-keygen -R {known}`, then `{by_hand}`",
    ),
    (
        "host key is known|Host key verification failed",
        "The host key of {name} is not known on this machine.",
        "compare and accept it: `{by_hand}`",
    ),
    (
        r"Permissions \d+ for '(.*)' are too open",
        "ssh does not use its key for {name}, because others can read {why}.",
        "`chmod 600 {why}`, then `{by_hand}`",
    ),
    (
        "Too many authentication failures",
        "{name} refused the first keys that ssh offered, and then the connection.",
        "name the right key for {name} in ~/.ssh/config (IdentityFile, IdentitiesOnly yes),"
        " then `{by_hand}`",
    ),
    (
        r"Permission denied \((.*)\)",
        "{name} accepts none of this user's keys ({why}).",
        "`ssh-copy-id` the key there, or load it into the ssh agent; then `{by_hand}`",
    ),
    (
        r"Could not resolve hostname .*?: (.*)",
        "The name {name} cannot be resolved: {why}.",
        "check its spelling, /etc/hosts and ~/.ssh/config, then `{by_hand}`",
    ),
    (
        "Connection refused",
        "No ssh server answers on {name}: its port refuses connections.",
        "start the ssh server there (`systemctl start ssh`), then `{by_hand}`",
    ),
    (
        "Connection timed out|Operation timed out|TimeoutError",
        "{name} does not answer: no connection came about in time.",
        "is it running, and does no filter drop its packets? `{by_hand}`",
    ),
    (
        "(No route to host|Network is unreachable)",
        "{name} cannot be reached: {why}.",
        "is it running, and is the network up? `{by_hand}`",
    ),
    (
        r"(?m)^((?!kex_|ssh: ).*(?:No such file or directory|not found))\s*$",
        "The proxy command for {name} failed: {why}.",
        "look at ProxyCommand in ~/.ssh/config, then `{by_hand}`",
    ),
    (
        "proxy dialer did not pass back a connection",
        "{name} does not answer: the proxy command for it made no connection.",
        "is it running? look at ProxyCommand in ~/.ssh/config, then `{by_hand}`",
    ),
    (
        "(?m)^(kex_exchange_identification|banner exchange|ssh_exchange_identification)",
        "{name} closed the connection before ssh could log in.",
        "look at the ssh server's log there, and at ProxyCommand in ~/.ssh/config; `{by_hand}`",
    ),
    (
        "closed by remote host|Broken pipe|Connection reset|Connection closed",
        "{name} closed the connection.",
        "look whether it is running: `{by_hand}`",
    ),
)
