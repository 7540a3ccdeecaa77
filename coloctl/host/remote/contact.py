"""Keep contact with the agent of one machine: dial, exchange HELLOs, serve, dial again.

Made by `host.remote.host`. It runs `host.remote.dial`'s command, greets by `host.remote.greeting`,
and carries the session of `host.wire.mux`. A connection on which nothing comes for `SILENCE_S`, or
twice as long as it took to be made, is ended. The next one resumes what the agent still has.

Invariant: `reach` is CONNECTED only while the agent of the same machine answers. A session that
began again has a new number there, and what was held before is forgotten first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from coloctl.clock import CLOCK, Clock
from coloctl.errors import HostOutOfReach, PreconditionFailed
from coloctl.host.records import Contact, Machine, Reach
from coloctl.host.remote.connection import AgentConnection, dialled
from coloctl.host.remote.dial import Dial
from coloctl.host.remote.echo import Echo
from coloctl.host.remote.greeting import exchange_hello, greet
from coloctl.host.remote.held import HoldTable
from coloctl.host.wire.codec import decode_answer, encode
from coloctl.host.wire.frames import FrameError
from coloctl.host.wire.mux import GRACE_S, Mux
from coloctl.host.wire.stream import WireStream
from coloctl.tasks import first_of

P = ParamSpec("P")
T = TypeVar("T")

#: A connection on which nothing comes for so long is ended; ssh's own probes give up later.
SILENCE_S = 3.0
#: At the most, where connections take long to be made: a machine without time for its sshd was
#: dialled again for 6.5 minutes (docs/two-machines.md).
SILENCE_MAX_S = 30.0
#: From one dial to the next, in turn; then always the last.
REDIAL_S = (0.2, 0.5, 1.0, 2.0, 5.0)
#: A connection that stood for so long was a good one: the next dials are quick again.
GOOD_S = 5.0
#: For one attempt, from the dial to the agent's HELLO. With a round trip of 2 s that took 24 s, and
#: with one of 1.5 s it took 40 s where the agent's program was sent as well (busy machine).
ATTEMPT_S = 90.0
#: From one of our times to the next: the agent sends each of them back.
ECHO_S = 0.1
#: How long what is asked first waits for the first connection.
FIRST_WAIT_S = 90.0
#: How long an agent may take to end its session.
BYE_WAIT_S = 2.0
#: The rhythm of an agent that beats no link, milliseconds.
BEAT_MS = 20
#: How long an agent stays without a connection, seconds.
LINGER_S = 3600


class AgentContact:
    """The contact with one agent, over as many connections as it takes.

    ``renewed`` is awaited when a session has begun, before it is reported as reached.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        pair: str = "",
        renewed: Callable[[Machine], Awaitable[None]],
        unclaimed: Callable[[str, Any], None],
        clock: Clock = CLOCK,
    ) -> None:
        self.name = dial.name
        self.echo = Echo()
        self._dial, self._pair, self._clock = dial, pair, clock
        self._renewed = renewed
        self._secret = secrets.token_hex(16)
        self.held = HoldTable(self._push, BEAT_MS, clock)
        pushed, beaten = self.held.pushed, self._beaten
        self._mux = Mux(
            _serve_nothing, pushed, odd=True, beaten=beaten, unclaimed=unclaimed, peer=dial.name
        )
        self._reach = Reach(Contact.NEVER, clock.now())
        self._machine: Machine | None = None
        self._failure: HostOutOfReach | None = None
        self._begun = self._failed = 0  #: attempts
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._greeted = 0  #: number of the session that was reported last
        self._hint = dial.failure(None, "").hint

    # -- state

    @property
    def reach(self) -> Reach:
        """The contact now; the round trip is that of the newest echo, or a longer silence."""
        heard_s = self.held.beaten_s
        if self._reach.out:
            return replace(self._reach, heard_s=heard_s)
        delay_s = self.echo.delay_s(self._clock.now())
        late = delay_s > self.echo.round_trip_s + 2 * ECHO_S
        round_trip_s = delay_s if late else self.echo.round_trip_s
        return replace(self._reach, round_trip_ms=1000 * round_trip_s, heard_s=heard_s)

    @property
    def machine(self) -> Machine:
        """The machine that answered; raises `HostOutOfReach` before one has."""
        if self._machine is None:
            raise self._out_of_reach()
        return self._machine

    def ours(self, theirs_s: float) -> float:
        """Convert a time of the agent's clock into one of ours, no later than now."""
        return self.echo.ours(theirs_s, self._clock.now())

    async def ready(self, deadline_s: float) -> None:
        """Wait until the agent can be asked; dials at once where no attempt is under way.

        Raises `HostOutOfReach`: an attempt failed, or ``deadline_s`` have passed.
        """
        self._begin()
        under_way = self._begun > self._failed and self._reach.out
        awaited = self._begun if under_way else self._begun + 1
        self._hurry.set()
        try:
            async with asyncio.timeout(deadline_s):
                while self._reach.out:
                    if self._failed >= awaited:
                        raise self._out_of_reach()
                    await self._changed.wait()
        except TimeoutError:
            if self._failure is not None:
                raise self._out_of_reach() from None
            raise HostOutOfReach(
                f"{self.name} did not answer within {deadline_s:g} s.",
                hint=self._hint,
            ) from None

    async def reached(self, than: Reach) -> Reach:
        """Wait until contact or session are others than ``than``'s, and return the reach."""
        self._begin()
        while (self._reach.contact, self._reach.session) == (than.contact, than.session):
            await self._changed.wait()
        return self.reach

    async def aclose(self, *, keep: bool = True) -> None:
        """End the session and the connection; ``keep``: what was launched there runs on."""
        self._closed = True
        if self._task is not None:
            if not self._reach.out:
                self._mux.bye(keep=keep)
                await asyncio.wait({self._task}, timeout=BYE_WAIT_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.held.forget("It was closed.")
        await self._mux.aclose()

    # -- requests

    async def call(
        self,
        operation: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
        wait_s: float,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Let the agent perform the operation, and return what it returns.

        Raises what the agent raised, and `HostOutOfReach` without waiting for a new connection.
        """
        if self._reach.contact is Contact.NEVER and self._failed == 0:
            await self.ready(FIRST_WAIT_S)
        if self._reach.out:
            raise self._out_of_reach()
        return await self.ask(operation, wait_s, **kwargs)  # type: ignore[call-arg]

    async def ask(
        self,
        operation: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
        wait_s: float,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do what `call` does, also over the next connection of this session.

        Raises as `call`, with `HostOutOfReach` for a damaged answer.
        """
        arguments = {name: encode(value) for name, value in kwargs.items()}
        answer = await self._mux.ask(operation.__name__, arguments, wait_s)
        try:
            decoded: T = decode_answer(operation, answer)
        except ValueError as error:
            raise HostOutOfReach(f"{self.name} sent a damaged answer: {error}.") from None
        return decoded

    def release(self, hold: int) -> None:
        """Let the agent release a hold that no object of this process has."""
        self._push("release", {"hold": hold})

    def _push(self, of: str, document: Mapping[str, Any]) -> None:
        self._mux.push(of, document)

    def stream(self, number: int) -> WireStream:
        """Attach to a stream that the agent opened."""
        return self._mux.stream(number)

    # -- connections

    def _begin(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Connect again and again until this is cancelled or closed."""
        quick = 0
        while True:
            self._begun += 1
            began_s = self._clock.now()
            try:
                why = await self._attempt()
            except HostOutOfReach as error:
                why, self._failure = error.message, error
            self._failed = self._begun
            stood = self._reach.contact is Contact.CONNECTED
            if stood and self._clock.now() - began_s > GOOD_S:
                quick = 0
            self._set(Contact.LOST if self._machine is not None else Contact.NEVER, why)
            if self._closed:
                return
            self._hurry.clear()
            wait_s = REDIAL_S[min(quick, len(REDIAL_S) - 1)]
            quick += 1
            async with first_of(self._hurry.wait(), self._clock.sleep(wait_s)):
                pass

    async def _attempt(self) -> str:
        """Dial once, and serve the connection to its end; returns why it ended.

        Raises `HostOutOfReach` where it did not come about.
        """
        began_s = self._clock.now()
        async with dialled(self._dial) as connection:
            confirmed = await self._agree(connection)
            if confirmed is None:
                return f"The session with {self.name} could not be resumed."
            silence_s = max(SILENCE_S, min(2 * (self._clock.now() - began_s), SILENCE_MAX_S))
            carrying = self._mux.carry(connection.reader, connection.writer, confirmed)
            async with first_of(carrying, self._attend(connection, silence_s)) as waits:
                silent = waits[1].done()
                why: str = (waits[1] if silent else waits[0]).result()
            return why if silent or self._closed else (await connection.failure(why)).message

    async def _agree(self, connection: AgentConnection) -> int | None:
        """Greet and exchange HELLOs; returns as `_resume`. Raises `HostOutOfReach`."""
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await greet(connection.reader, connection.writer, self.name)
                return await self._resume(connection)
        except TimeoutError:
            raise HostOutOfReach(
                f"{self.name} did not answer within {ATTEMPT_S:g} s.", hint=self._hint
            ) from None
        except (EOFError, OSError):
            raise await connection.failure() from None
        except FrameError as error:
            raise HostOutOfReach(f"{self.name} is no agent: {error}") from None

    async def _resume(self, connection: AgentConnection) -> int | None:
        """Exchange HELLOs; returns the frames that the agent confirms, None: dial again.

        Raises `HostOutOfReach`, and what `exchange_hello` raises.
        """
        hello = await exchange_hello(
            connection.reader,
            connection.writer,
            self.name,
            {
                **{"client": "supervisor", "pair": self._pair, "secret": self._secret},
                **{"session": self._mux.session, "received": self._mux.received},
                **{"beat_ms": BEAT_MS, "linger_s": LINGER_S},
            },
        )
        machine = hello.machine
        if self._machine is not None and machine.machine_id != self._machine.machine_id:
            raise HostOutOfReach(
                f"{self.name} is another machine now: its machine-id is {machine.machine_id},"
                f" and was {self._machine.machine_id}.",
                hint="no process of the pair is looked for there; correct the address",
            )
        if hello.resumed and hello.session == self._mux.session:
            if self._mux.resumable(hello.received):
                return hello.received
            self._forget(f"The session with {self.name} could not be resumed.")
            return None
        self._forget(f"The agent on {self.name} is another one.")
        self._mux.session, self._machine = hello.session, machine
        return 0

    def _forget(self, why: str) -> None:
        self._mux.forget(why)
        self.held.forget(why)
        self.echo = Echo()
        self._reach = replace(self._reach, session=self._reach.session + 1)

    async def _attend(self, connection: AgentConnection, silence_s: float) -> str:
        """Report the machine as reached, and send our time; returns after ``silence_s`` of none."""
        assert self._machine is not None, "the HELLO named it"
        self._mux.beat(self.echo.send(self._clock.now()))
        if self._reach.session != self._greeted:
            await self._renewed(self._machine)
            self._greeted = self._reach.session
        self._failure = None
        self._set(Contact.CONNECTED, "")
        looked_s = self._clock.now()
        while True:
            await self._clock.sleep(ECHO_S)
            late = self._clock.now() - looked_s > silence_s / 2  # we were stopped: read first
            looked_s = self._clock.now()
            if not late and looked_s - self._mux.arrived_s > silence_s:
                return f"Nothing came from {self.name} for {silence_s:.1f} s."
            self._mux.grace_s = GRACE_S + self.echo.delay_s(looked_s)
            self._mux.beat(self.echo.send(looked_s))
            connection.bound_output()

    def _beaten(self, document: Mapping[str, Any]) -> None:
        self.echo.receive(document, self._clock.now())
        self.held.beaten(document, self.echo.round_trip_s)

    def _out_of_reach(self) -> HostOutOfReach:
        if self._failure is not None:
            return HostOutOfReach(self._failure.message, hint=self._failure.hint)
        why = self._reach.why or f"{self.name} was not reached yet."
        return HostOutOfReach(why, hint=self._hint)

    def _set(self, contact: Contact, why: str) -> None:
        if contact is not self._reach.contact:
            self._reach = replace(self._reach, contact=contact, since_s=self._clock.now())
        self._reach = replace(self._reach, why=why)
        self._changed.set()
        self._changed = asyncio.Event()


async def _serve_nothing(do: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
    """Refuse what an agent asks: it has nothing to ask. Raises `PreconditionFailed`."""
    raise PreconditionFailed(f"The supervisor has no operation {do!r}.")
