"""Make an invalid run as small as it stays invalid: fewer faults, shorter times.

Called by `chaos.run.batch` for `--shrink`; makes the smaller runs with `chaos.run.runner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import tomli_w

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.run import runner
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import Run
from coloctl.chaos.scenario.schedule import smaller, workloads
from coloctl.chaos.scenario.values import FaultSpec, Scenario, ScheduledFault

#: Runs that are made at most; each takes about as long as the one that is made smaller.
TRIES_MAX = 24

Make = Callable[[Run], RunResult]


@dataclass(frozen=True)
class Least:
    """The smallest plan that was found to be invalid too."""

    plan: tuple[ScheduledFault, ...]
    outcome: RunResult
    tries: int
    text: str  #: a scenario file that has exactly it

    @property
    def sentence(self) -> str:
        count = len(self.plan)
        faults = ", ".join(f"{one.kind} {one.target}".strip() for one in self.plan)
        runs = f"{self.tries} run{'' if self.tries == 1 else 's'}"
        said = "1 fault suffices" if count == 1 else f"{count} faults suffice"
        return f"{said} ({runs}): {faults}"


def shrink(
    run: Run,
    outcome: RunResult,
    tell: Callable[[str], None] = lambda _sentence: None,
    make: Make = runner.make,
    tries_max: int = TRIES_MAX,
) -> Least:
    """Try simpler plans until none of the next simpler ones breaks the same promise.

    ``outcome`` is that of ``run``: invalid.
    """
    plan, worst, tries = run.plan, outcome, 0
    invalid = _invalid(outcome)
    progress = True
    while progress:
        progress = False
        for less in smaller(plan):
            if tries == tries_max:
                break
            tries += 1
            tell(f"trying {less.how}")
            found = make(replace(run, plan=less.plan))
            if found.validity is Validity.INVALID and _invalid(found) & invalid:
                plan, worst, progress = less.plan, found, True
                break
    return Least(plan, worst, tries, text(run.scenario, run.seed, plan))


def _invalid(outcome: RunResult) -> frozenset[str]:
    return frozenset(v.check for v in outcome.verdicts if v.validity is Validity.INVALID)


def text(scenario: Scenario, seed: int, plan: tuple[ScheduledFault, ...]) -> str:
    """Write a scenario file with exactly these faults."""
    shrunk = scenario.model_copy(
        update={
            "title": f"{scenario.title} (made smaller)",
            "seed": seed,
            "workloads": workloads(scenario, plan),
            "faults": tuple(map(FaultSpec.of, plan)),
        }
    )
    return tomli_w.dumps(shrunk.to_document())
