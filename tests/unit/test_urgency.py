"""A thread that beats runs before programs that compute, and what it starts does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coloctl.urgency import hasten_end, hasten_session, hasten_start, let_end

pytestmark = pytest.mark.unit

AUTOGROUP = Path("/proc/self/autogroup")

#: Prints its priority, that of a program and of a thread that it started.
PROGRAM = """
import os, subprocess, sys, threading
from coloctl.urgency import hurry, keep_up
SHOW = "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"
print(hurry(), flush=True)
exec(SHOW, {})
sys.stdout.flush()
subprocess.run([sys.executable, "-c", SHOW], check=True)
def urgent():
    keep_up()
    exec(SHOW, {})
for work, given in ((exec, (SHOW, {})), (urgent, ())):
    thread = threading.Thread(target=work, args=given)
    thread.start()
    thread.join()
    sys.stdout.flush()
"""


def shown(*before: str) -> tuple[str, list[str]]:
    """The priority that a program got, and the policy and niceness of it and of its own."""
    words = [*before, sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    now, *rest = done.stdout.splitlines()
    return now, rest


def test_what_a_thread_that_beats_starts_has_the_normal_priority() -> None:
    now, (own, program, thread, urgent) = shown()
    normal = f"{os.SCHED_OTHER} 0"
    policy = {"real time": os.SCHED_RR, "": os.SCHED_OTHER}.get(now, os.SCHED_OTHER)
    assert int(own.split()[0]) & ~os.SCHED_RESET_ON_FORK == policy
    assert not now or (program, thread) == (normal, normal)
    assert urgent == own


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to give up a right of root")
def test_without_the_right_it_runs_as_before() -> None:
    now, (own, *rest) = shown("setpriv", "--bounding-set=-sys_nice")
    assert now == "" and len(rest) == 3
    assert {one.split()[1] for one in rest} == {own.split()[1]}
    assert int(own.split()[0]) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER


#: When told to, prints the niceness of a thread that joins its start, of another, and of a program.
STARTS = """
import subprocess, sys, threading
from coloctl.urgency import join_start
sys.stdin.readline()
show = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
def joined():
    join_start()
    exec(show, {})
for work, given in ((joined, ()), (exec, (show, {}))):
    thread = threading.Thread(target=work, args=given)
    thread.start()
    thread.join()
    sys.stdout.flush()
subprocess.run([sys.executable, "-c", show], check=True)
"""


def test_a_process_that_begins_gets_a_better_niceness_and_what_it_starts_does_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        before = os.getpriority(os.PRIO_PROCESS, process.pid)
        hasten_start(process.pid)
        after = os.getpriority(os.PRIO_PROCESS, process.pid)
        joined, other, of_its_own = map(int, process.communicate("\n")[0].split())
    assert after in (-11, before)
    assert joined == after
    assert after == before or (other, of_its_own) == (0, 0)
    hasten_start(process.pid)  # it is gone


def test_a_process_that_ends_gets_the_priority_with_each_thread_and_one_that_is_gone_none() -> None:
    program = (
        "import threading; lock = threading.Lock(); lock.acquire();"
        "threading.Thread(target=lock.acquire, daemon=True).start();"
        "print(flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        threads = os.listdir(f"/proc/{child.pid}/task")  # noqa: PTH208
        hasten_end(child.pid)
        policies = [os.sched_getscheduler(int(one)) for one in threads]
        let_end(child.pid)
        lowered = [
            (os.sched_getscheduler(int(one)), os.getpriority(os.PRIO_PROCESS, int(one)))
            for one in threads
        ]
        hasten_end(child.pid)
        again = [os.sched_getscheduler(int(one)) for one in threads]
        child.kill()
    assert len(policies) == 2 and policies[0] == policies[1]
    assert lowered == [(os.SCHED_OTHER, 19)] * 2 and again == policies
    if len(os.sched_getaffinity(0)) > 1:  # with one, `hurry` shows nothing of what is allowed
        assert policies[0] == (os.SCHED_RR if shown()[0] == "real time" else os.SCHED_OTHER)
    hasten_end(child.pid)
    let_end(child.pid)


def test_the_only_processor_of_a_machine_is_left_to_sshd() -> None:
    one = str(min(os.sched_getaffinity(0)))
    now, (own, *_) = shown("taskset", "--cpu-list", one)
    assert now == ""
    assert int(own.split()[0]) == os.SCHED_OTHER


#: Raises a program, which prints what its session weighs, before and after it has started.
WEIGHS = """
import os, subprocess, sys
from coloctl.urgency import hasten_start
program = [sys.executable, "-c", sys.argv[1]]
with subprocess.Popen(program, stdin=subprocess.PIPE, text=True) as process:
    hasten_start(process.pid)
    print(os.getpriority(os.PRIO_PROCESS, process.pid), flush=True)
    process.communicate("\\n")
"""
WEIGHED = """
import sys
from coloctl.urgency import has_started
sys.stdin.readline()
for _ in range(2):
    print(open("/proc/self/autogroup").read().split()[-1], flush=True)
    has_started()
"""


def weights(*, leads: bool) -> list[str]:
    """The niceness of the program that was raised, and the weights of its session.

    The session is never that of the tests, which other tests weigh meanwhile.
    """
    argv = [sys.executable, "-c", WEIGHS, WEIGHED]
    done = subprocess.run(
        argv if leads else ["sh", "-c", '"$@"; exit $?', "sh", *argv],
        capture_output=True, text=True, check=True, start_new_session=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not weigh sessions")
def test_a_session_weighs_more_until_what_was_raised_in_it_has_started() -> None:
    raised, *seen = weights(leads=True)
    assert seen == [raised, "0"]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not weigh sessions")
def test_a_session_of_another_is_left_as_it_is() -> None:
    _, *seen = weights(leads=False)
    assert seen == ["0", "0"]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not weigh sessions")
@pytest.mark.parametrize("leads", [True, False])
def test_a_session_is_weighed_by_the_process_that_leads_it(leads: bool) -> None:
    script = "echo $$; exec sleep 60" if leads else "sleep 60 & echo $!; wait"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            hasten_session(pid)
            weighed = Path(f"/proc/{pid}/autogroup").read_text().split()[-1]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert weighed in (("-11", "0") if leads else ("0",))
    hasten_session(process.pid)  # it is gone
