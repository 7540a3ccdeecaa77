"""Order a fence agent to switch a node off, and ask it whether the node is off.

Called by `ha.fencing` for a lost node, by `supervisor.acts.fencing` long before that, and by
`check.doctor`; runs the agent through `host`. The protocol is that of the ClusterLabs fence agents:
``key=value`` lines on standard input, the verdict in the exit code of ``action=status``: 0 is on, 2
is off. An ``action=off`` that ended with 0 is a promise, not a confirmation.

Invariant: exit code 2 alone confirms nothing. A shell that cannot read its script, a Python without
its file and most programs that do not understand their options end with 2 as well. So the agent
must also write "off" on standard output, or write nothing and be known to work: it has reported
"on" of the same node before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.errors import ColoctlError, DeadlineMissed, FencingFailed
from coloctl.host import LocalHost
from coloctl.host.base import Completed
from coloctl.model.pair import FencingSpec, NodeName

#: Exit codes of ``action=status`` (FenceAgentAPI.md); any other means that it is not known.
ON, OFF = 0, 2

#: Of the agent's time, what ``off`` leaves for ``status``: half of it, at most this many seconds.
STATUS_RESERVE_S = 10.0
#: A machine may take a moment to be off; asking again is harmless. Seconds.
STATUS_PERIOD_S = 1.0

#: A line of ``status`` that means off, as "Status: OFF", "off", "node1 is off" do.
_SAYS_OFF = re.compile(r"\boff\W*$", re.IGNORECASE)
#: Words of a line that explains options, or complains.
_SAYS_ELSE = re.compile(
    r"\b(on|usage|actions?|options?|valid|invalid|error|fail(ed|ure)?|unknown|cannot|must|not)\b",
    re.IGNORECASE,
)

_SECRET = re.compile(r"passw|passphrase|secret|token|cookie|community|(^|[-_])key($|[-_])")

#: Why the documented exit code for "off" was not believed.
_NOT_ENOUGH = ", which programs that do not understand their options also do"

#: The end of an agent's output that is quoted, characters.
_QUOTED = 300


@dataclass(frozen=True)
class AgentAnswer:
    """The answer of an agent that was asked for the status of a node; nothing was switched."""

    works: bool  #: it reported "on" or "off" in a way that counts
    on: bool = False
    said: str = ""  #: a sentence for an operator


async def ask(fencing: FencingSpec, node: NodeName, clock: Clock = CLOCK) -> AgentAnswer:
    """Ask the agent for the status of ``node``; nothing is switched. Never raises `ColoctlError`.

    Takes at most ``fencing.timeout_s``; an agent that is late is killed.
    """
    agent = _Agent(fencing, node, Deadline(fencing.timeout_s, clock))
    async with LocalHost() as agent.host:
        try:
            status = await agent.perform("status")
        except FencingFailed as failed:
            return AgentAnswer(False, said=failed.message)
    words = f": {said.rstrip('.')}." if (said := agent.quote(status)) else "."
    if status.code == ON:
        return AgentAnswer(
            True, True, f"The fence agent {agent.name} says that node {node} is on{words}"
        )
    if confirms_off(status):
        said = f"The fence agent {agent.name} says that node {node} is off{words}"
        return AgentAnswer(True, False, said)
    return AgentAnswer(
        False,
        said=f"The fence agent {agent.name} says neither that node {node} is on nor that it is off "
        f"(action=status ended with {status.code}){words}",
    )


def confirms_off(status: Completed, *, known: bool = False) -> bool:
    """Return whether that answer to ``action=status`` means off.

    ``known``: the agent has reported "on" of this node before.
    """
    if status.code != OFF:
        return False
    lines = status.stdout.splitlines()
    if any(_SAYS_OFF.search(line) and not _SAYS_ELSE.search(line) for line in lines):
        return True
    return known and not status.stdout.strip() and not status.stderr.strip()


async def switch_off(
    fencing: FencingSpec, node: NodeName, clock: Clock = CLOCK, *, known: bool = False
) -> str:
    """Switch ``node`` off by its agent, which confirms that it is off; return its last output.

    ``known``: the agent has reported "on" of this node before, so that its silence may confirm.
    Takes at most ``fencing.timeout_s``; an agent that is late is killed. Raises `FencingFailed`
    with its standard error, without secrets.
    """
    agent = _Agent(fencing, node, Deadline(fencing.timeout_s, clock))
    async with LocalHost() as agent.host:
        off = await agent.perform("off")
        while True:
            status = await agent.perform("status")
            if confirms_off(status, known=known):
                return agent.quote(status) or agent.quote(off)
            known = known or status.code == ON
            # The answer to `off` decides whether to go on waiting, not hope.
            if off.code != 0 or agent.deadline.remaining() <= STATUS_PERIOD_S:
                raise agent.failed(off, status)
            await clock.sleep(STATUS_PERIOD_S)


class _Agent:
    """One conversation with one agent about one node."""

    host: LocalHost

    def __init__(self, fencing: FencingSpec, node: NodeName, deadline: Deadline) -> None:
        self.fencing, self.node, self.deadline = fencing, node, deadline
        self.name = fencing.command[0].rpartition("/")[2]
        given = fencing.options.get(node, {})
        self.options = {"plug": node, "nodename": node, **given}
        self.secrets = sorted({*_secrets(given), *_in_arguments(fencing.command)}, key=len)

    async def perform(self, action: str) -> Completed:
        """Run the agent with ``action``; one that did not end in time has code -1."""
        reserve = min(STATUS_RESERVE_S, self.fencing.timeout_s / 2) if action == "off" else 0.0
        lines = {"action": action, **self.options}
        try:
            return await self.host.run(
                self.fencing.command,
                deadline_s=max(0.01, self.deadline.remaining() - reserve),
                stdin="".join(f"{name}={value}\n" for name, value in lines.items()).encode(),
            )
        except DeadlineMissed:  # its message has the whole command line
            return Completed(-1, "", f"it did not end in time at action={action} and was killed")
        except ColoctlError as error:
            raise FencingFailed(self.node, self.clean(error.message), hint=error.hint) from None

    def failed(self, off: Completed, status: Completed) -> FencingFailed:
        """Make the error that explains why there is no confirmation."""
        words = self.quote(status) if off.code == 0 else self.quote(off)
        after = f" after action=off ended with {off.code}" if off.code != 0 else ""
        says = f"says that node {self.node} is still on" if status.code == ON else (
            f"did not say that node {self.node} is off (action=status ended with {status.code}"
            f"{_NOT_ENOUGH if status.code == OFF else ''})"
        )  # fmt: skip
        return FencingFailed(
            self.node,
            f"The fence agent {self.name} {says}{after}: {(words or 'no output').rstrip('.')}.",
            hint=f"call {self.name} by hand with action=status and the options of the pair file",
        )

    def quote(self, done: Completed) -> str:
        """Return the end of the agent's output, on one line, without secrets."""
        return self.clean(" ".join((done.stderr.strip() or done.stdout).split()))[-_QUOTED:]

    def clean(self, text: str) -> str:
        """Replace every secret in ``text``."""
        for secret in reversed(self.secrets):  # the longest first: one may hold another
            text = text.replace(secret, "***")
        return text


def _secrets(options: Mapping[str, str]) -> Iterator[str]:
    """Find the values of options that are named like a secret."""
    return (value for name, value in options.items() if value and _SECRET.search(name.lower()))


def _in_arguments(words: tuple[str, ...]) -> Iterator[str]:
    """Find the same on the command line: ``--password=x``, ``--password x``, ``-p x``."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "-p" or (flag.startswith("-") and _SECRET.search(flag.lower())):
            yield from filter(None, [value if equals else following])
