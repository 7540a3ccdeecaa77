"""Check that money which moves between accounts is neither made nor lost by a fault.

Registered in `chaos.checks`, whose checks `chaos.run.runner` calls; reads the histories of
`chaos.workloads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coloctl.chaos.checks.sides import Sides, each_work
from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, OpStatus


class Bank(Sides):
    """``total`` is the sum of all accounts; that of the first read unless it is given.

    ``overdraft``: accounts may fall below zero.
    """

    total: int | None = None
    overdraft: bool = True


@check(Bank)
def bank_sum(evidence: Evidence, params: Bank) -> Verdict:
    """Require the same sum in every read of all accounts and in the end, where the transfers that
    were done explain every balance.
    """
    return each_work(evidence, ("redis-transfers",), lambda work: _sum(work, params), params)


def _sum(work: WorkloadRecord, params: Bank) -> Verdict:
    reads = [op for op in work.history if op.f == "read" and op.outcome is OpStatus.OK]
    seen = [(f"client {op.client} read", _balances(op.value)) for op in reads]
    if work.kept is not None:
        seen.append(("the guest holds", _balances(work.kept["balances"])))
    if not seen:
        return unknown("no balances were read")
    total = sum(seen[0][1].values()) if params.total is None else params.total
    wrong = [
        f"{who} {_text(balances)}: {sum(balances.values())} instead of {total}"
        for who, balances in seen
        if sum(balances.values()) != total
    ]
    wrong += [
        f"{who} {_text(balances)}: less than zero"
        for who, balances in seen
        if not params.overdraft and min(balances.values(), default=0) < 0
    ]
    wrong += _unexplained(work, reads)
    if wrong:
        return invalid(f"{count(len(wrong), 'time')} the balances were wrong", wrong)
    if work.kept is None:
        return unknown("the guest did not answer with the balances in the end")
    if not reads and params.total is None:
        return unknown("the balances were not read while they changed")
    return valid(f"{count(len(reads), 'read')} and the end sum to {total}")


def _unexplained(work: WorkloadRecord, reads: list[Op]) -> list[str]:
    """Describe accounts that end with other amounts than the transfers that were done explain.

    It needs a read before every transfer, which shows what the accounts began with.
    """
    sent = [op for op in work.history if op.f == "transfer" and op.outcome is OpStatus.INVOKE]
    if work.kept is None or not reads or not sent or reads[0].at_s > sent[0].at_s:
        return []
    meant = _balances(reads[0].value)
    for op in sent:
        if op.n <= work.kept["done"].get(op.client, -1):
            source, target, amount = str(op.value["from"]), str(op.value["to"]), op.value["amount"]
            meant[source] = meant.get(source, 0) - amount
            meant[target] = meant.get(target, 0) + amount
    held = _balances(work.kept["balances"])
    return [
        f"account {account} holds {held.get(account, 0)}, the transfers done make it "
        f"{meant.get(account, 0)}"
        for account in sorted({*held, *meant})
        if held.get(account, 0) != meant.get(account, 0)
    ]


def _balances(value: Mapping[Any, Any]) -> dict[str, int]:
    return {str(account): int(amount) for account, amount in value.items()}


def _text(balances: Mapping[str, int]) -> str:
    return ", ".join(f"{account}={amount}" for account, amount in sorted(balances.items()))
