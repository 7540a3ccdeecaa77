"""Make an invalid run as small as it stays invalid: fewer faults, shorter times.

Called by `chaos.run.batch` for `--shrink`; makes the smaller runs with `chaos.run.runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tomli_w

from coloctl.chaos.checks.verdict import Validity
from coloctl.chaos.run import runner
from coloctl.chaos.run.result import RunResult
from coloctl.chaos.run.runner import Run
from coloctl.chaos.scenario.schedule import smaller
from coloctl.chaos.scenario.values import Scenario, ScheduledFault

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
    document: dict[str, Any] = {
        "title": f"{scenario.title} (made smaller)",
        "why": scenario.why,
        "seed": seed,
        "settle_s": scenario.settle_s,
        "steady_state": vars(scenario.steady_state),
        "guest": dict(scenario.guest),
        "pair": dict(scenario.pair),
        "workload": [
            {
                **work.params,
                "name": work.name,
                "kind": work.kind,
                "clients": work.clients,
                "begins": work.begins,
            }
            for work in scenario.workloads
        ],
        "fault": [_fault(one) for one in plan],
        "expect": {name: dict(given) for name, given in scenario.expect.items()},
    }
    return tomli_w.dumps(document)


def _fault(one: ScheduledFault) -> Mapping[str, Any]:
    written: dict[str, Any] = {
        "name": one.name,
        "kind": one.kind,
        "target": one.target,
        "at_s": one.at_s,
        **{key: value for key, value in one.params.items() if value is not None},
    }
    extra = {
        "when": None if one.when is None else str(one.when),
        "after": one.after or None,
        "duration_s": one.duration_s,
    }
    return written | {key: value for key, value in extra.items() if value is not None}
