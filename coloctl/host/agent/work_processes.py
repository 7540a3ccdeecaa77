"""Define the operations of an agent on programs and on what they have open.

Listed by `host.agent.work`; each calls the method of `host.local` that bears its name, and
`host.agent.holds` keeps what the client, `host.remote`, goes on using.

A push ``death`` follows when the process of a `ProcessHandle` is gone. `converse` opens a stream
for lines of text, and pushes ``over`` with the program's standard error before it ends that stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from coloctl.errors import ColoctlError
from coloctl.host.agent.beat import Beat
from coloctl.host.agent.handles import ConversationHandle, ProcessHandle
from coloctl.host.agent.holds import Holds
from coloctl.host.identity import Identity
from coloctl.host.local import LocalHost
from coloctl.host.program import Program
from coloctl.host.records import Completed, Death, DeathProof, Stray
from coloctl.host.watching import Conversation
from coloctl.host.wire.mux import Mux
from coloctl.host.wire.stream import WireStream
from coloctl.model.launch import Launch

#: A conversation has no deadline of its own: its client ends it.
_FOREVER_S = 1e9


class ProcessWork:
    """The operations on programs; a part of `host.agent.session.AgentSession`."""

    host: LocalHost
    holds: Holds
    beat: Beat
    mux: Mux

    async def launch(self, program: Launch, stderr: Path, node: str) -> ProcessHandle:
        """Start a program as `Host.launch` does, and hold it."""
        return self._hold(await self.host.launch(program, stderr=stderr, node=node))

    async def adopt(
        self,
        identity: Identity,
        *,
        node: str,
        leader: Identity | None,
        sockets: tuple[Path, ...],
    ) -> ProcessHandle | None:
        """Hold a running program as `Host.adopt` does; None is a proof: all of it is gone."""
        found = await self.host.adopt(identity, node=node, leader=leader, sockets=sockets)
        return None if found is None else self._hold(found)

    async def answers(self, hold: int, speaker: Identity, files: tuple[Path, ...]) -> ProcessHandle:
        """Settle which process is the QEMU, as `Process.answers` does; returns its handle."""
        process = self.holds.find(hold, Program)
        await process.answers(speaker, files)
        return _handle(hold, process)

    async def end(self, hold: int, gently: bool, deadline_s: float) -> DeathProof:
        """End a held program, ``gently`` as `Process.terminate` does, else as `Process.kill`."""
        process = self.holds.find(hold, Program)
        return await (process.terminate(deadline_s) if gently else process.kill(deadline_s))

    async def halt(self, hold: int, deadline_s: float) -> DeathProof:
        """Kill a held program, as `Process.halt` does."""
        return await self.holds.find(hold, Program).halt(deadline_s)

    async def kill(
        self,
        identity: Identity,
        *,
        node: str,
        deadline_s: float,
        leader: Identity | None,
        sockets: tuple[Path, ...],
    ) -> DeathProof:
        """Kill a program that is not held, as `Host.kill` does."""
        return await self.host.kill(
            identity, node=node, deadline_s=deadline_s, leader=leader, sockets=sockets
        )

    async def still_held(
        self, images: tuple[Path, ...], taps: tuple[str, ...], besides: Identity | None
    ) -> tuple[str, ...]:
        """Find what holds images or taps, as `Host.still_held` does."""
        return await self.host.still_held(images=images, taps=taps, besides=besides)

    async def holders(self, sockets: tuple[Path, ...]) -> dict[Path, tuple[Stray, ...]]:
        """Find the processes that hold sockets, as `Host.holders` does."""
        return dict(await self.host.holders(sockets))

    async def run(self, argv: tuple[str, ...], deadline_s: float, stdin: bytes) -> Completed:
        """Run a program to its end, as `Host.run` does; a CANCEL kills it."""
        return await self.host.run(argv, deadline_s=deadline_s, stdin=stdin)

    async def converse(self, argv: tuple[str, ...]) -> ConversationHandle:
        """Run a program whose lines go over a stream both ways, as `Host.converse` does.

        The release of the hold kills the program with its children.
        """
        async with AsyncExitStack() as stack:
            conversation = await stack.enter_async_context(self.host.converse(argv))
            kept = stack.pop_all()
        hold = self.holds.add(conversation, kept.aclose)
        lines = self.mux.stream()
        self.holds.attend(hold, _to_program(conversation, lines))
        self.holds.attend(hold, self._from_program(hold, conversation, lines))
        return ConversationHandle(hold, lines.number)

    async def _from_program(self, hold: int, conversation: Conversation, lines: WireStream) -> None:
        with contextlib.suppress(ColoctlError):
            while (line := await conversation.hear(_FOREVER_S)) is not None:
                await lines.write(line.encode() + b"\n")
        self.mux.push("over", {"hold": hold, "words": conversation.last_words()})
        lines.end()

    def _hold(self, process: Program) -> ProcessHandle:
        hold = self.holds.add(process, process.close)
        self.beat.add_process(hold, process)
        self.holds.attend(hold, self._push_end(hold, "halted", process.until_halted()))
        self.holds.attend(hold, self._push_end(hold, "death", process.wait()))
        return _handle(hold, process)

    async def _push_end(self, hold: int, of: str, end: Coroutine[Any, Any, Death]) -> None:
        death = await end
        told = {"pid": death.pid, "at_s": death.at_s, "exit_code": death.exit_code}
        self.mux.push(of, {"hold": hold, **told, "memory_limit": death.memory_limit})


async def _to_program(conversation: Conversation, lines: WireStream) -> None:
    rest = b""
    with contextlib.suppress(ColoctlError):
        while data := (await lines.read()).data:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                await conversation.say(line.decode(errors="replace"), _FOREVER_S)


def _handle(hold: int, process: Program) -> ProcessHandle:
    return ProcessHandle(hold, process.identity, process.leader, process.argv, process.unplaced)
