"""Make many runs, one after the other or side by side, each in a lab of its own.

Called by `cli.verbs.chaos`, and by `chaos.run.worker` for one run; calls `chaos.run.runner` and
`chaos.run.shrink`.
"""

from __future__ import annotations

import math
import pickle
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.run import artifacts, runner, shrink
from coloctl.chaos.run.artifacts import Artifacts
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import Run
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Scenario

#: Receives how a run goes on: the scenario's name, its seed, a sentence.
Tell = Callable[[str, int, str], None]


@dataclass(frozen=True)
class Task:
    """One run of the scenario of one file, and what is wanted of it."""

    path: Path
    scenario: Scenario
    seed: int
    where: Testbed
    root: Path  #: its artifacts get a folder of their own in there
    shrink: bool = False
    capture: bool = False  #: the packets on the guest's LAN are kept there too


def tasks(
    scenarios: Sequence[tuple[Path, Scenario]],
    where: Testbed,
    root: Path,
    *,
    seed: int | None = None,
    repeat: int = 1,
    smaller: bool = False,
    capture: bool = False,
) -> list[Task]:
    """Build the tasks: ``repeat`` runs of each scenario, by the file that it was read from.

    The first one has its own seed or ``seed``, the others have those after it.
    """
    made: list[Task] = []
    for path, scenario in scenarios:
        first = scenario.seed if seed is None else seed
        made += [
            Task(path, scenario, number, where, root, smaller, capture)
            for number in range(first, first + repeat)
        ]
    return made


def run_all(
    todo: Sequence[Task], jobs: int, tell: Tell, until_s: float = math.inf
) -> Iterator[RunResult]:
    """Make all runs and return the result of each as it ends; histories stay in the artifacts.

    No task begins after ``until_s`` (monotonic).

    Ctrl-C ends what is under way and leaves nothing behind. ``tell`` is called by several threads
    where there are several jobs.
    """
    if jobs <= 1:
        for task in todo:
            if time.monotonic() < until_s:
                yield run_one(task, tell)
        return
    workers = _Workers(jobs, tell, until_s)
    with ThreadPoolExecutor(jobs) as threads:
        futures = [threads.submit(workers.run, task) for task in todo]
        try:
            for future in as_completed(futures):
                if (outcome := future.result()) is not None:
                    yield outcome
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            workers.interrupt()
            raise


class _Workers:
    """Processes that make one run each (worker.py), at most one per slot."""

    def __init__(self, slots: int, tell: Tell, until_s: float) -> None:
        self._tell, self._until_s = tell, until_s
        self._slots: SimpleQueue[int] = SimpleQueue()
        for number in range(slots):
            self._slots.put(number)
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(self, task: Task) -> RunResult | None:
        """Make a run under the name of a slot, which no other run has at the same time."""
        if time.monotonic() >= self._until_s:
            return None
        slot = self._slots.get()
        where = replace(task.where, name=f"{task.where.name}-{slot}")
        try:
            with scratch() as folder:
                return self._run(replace(task, where=where), Path(folder))
        finally:
            self._slots.put(slot)

    def _run(self, task: Task, folder: Path) -> RunResult:
        todo, done = folder / "task", folder / "outcome"
        todo.write_bytes(pickle.dumps(task))
        if self._ended:
            raise KeyboardInterrupt
        argv = [sys.executable, "-m", "coloctl.chaos.run.worker", str(todo), str(done)]
        worker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._running.add(worker)
        try:
            for line in worker.stdout or ():
                self._tell(task.path.stem, task.seed, line.rstrip("\n"))
            worker.wait()
        finally:
            self._running.discard(worker)
        if not done.exists():
            raise ChildProcessError(f"The process that ran {task.path} ended without a result.")
        outcome: RunResult = pickle.loads(done.read_bytes())
        return outcome

    def interrupt(self) -> None:
        """Interrupt every worker and wait until each has cleared its run away and ended."""
        self._ended = True
        for worker in list(self._running):
            worker.send_signal(signal.SIGINT)
        for worker in list(self._running):
            worker.wait()


def run_one(task: Task, tell: Tell) -> RunResult:
    """Make one run and write its artifacts.

    An invalid one is made smaller where that was asked for.
    """
    scenario = task.scenario
    run = Run.of(scenario, task.seed, task.where, replay_of(task))

    def say(sentence: str) -> None:
        tell(scenario.name, task.seed, sentence)

    kept = Artifacts(artifacts.fresh(task.root, scenario.name, task.seed))
    try:
        outcome = runner.make(run, say, kept, capture=task.capture)
    except Exception as error:  # any error: the runs after it are made
        outcome = runner.never_begun(run, error)
        kept.write("error.txt", traceback.format_exc())
    outcome = replace(outcome, artifacts=kept.folder)
    kept.finish(outcome, task.path)
    if task.shrink and outcome.validity is Validity.INVALID and run.plan:
        least = shrink.shrink(run, outcome, say)
        say(least.sentence)
        kept.write("shrunk.toml", least.text)
    return outcome.light()


def replay_of(task: Task) -> str:
    """Build the command line that makes the run of that task again."""
    words = ["coloctl", "chaos", "run", str(task.path), "--seed", str(task.seed)]
    words += ["--machines"] if task.where.on == "machines" else []
    words += ["--tls"] if task.where.tls else []
    return shlex.join(words)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that is removed at the end of its ``with`` block."""
    return tempfile.TemporaryDirectory(prefix="coloctl-chaos-", ignore_cleanup_errors=True)
