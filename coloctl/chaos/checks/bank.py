"""Money moves, and is neither made nor lost, whatever breaks between two accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coloctl.chaos.checks.check import Check, Sides, count, each_work, invalid, unknown, valid
from coloctl.chaos.checks.records import by_client
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.workloads.history import Op, Outcome

CHECK = "bank_sum"


class Bank(Sides):
    """``total`` is the sum of all accounts; the first read tells it when nobody says it.

    ``overdraft``: accounts may fall below nothing.
    """

    total: int | None = None
    overdraft: bool = True


def bank_sum(evidence: Evidence, params: Bank) -> Verdict:
    """Every read, and what the guest holds in the end, sums to the same total."""
    return each_work(CHECK, evidence, ("redis-transfers",), lambda work: _sum(work, params), params)


def _sum(work: WorkloadRecord, params: Bank) -> Verdict:
    reads = [op for op in work.history if op.f == "read" and op.outcome is Outcome.OK and op.value]
    seen = [(f"client {op.client} read", _balances(op.value)) for op in reads]
    if work.kept is not None:
        seen.append(("the guest holds", _balances(work.kept["balances"])))
    if not seen:
        return unknown(CHECK, "no balances were read")
    total = sum(seen[0][1].values()) if params.total is None else params.total
    wrong = [
        f"{who} {_words(balances)}: {sum(balances.values())} instead of {total}"
        for who, balances in seen
        if sum(balances.values()) != total
    ]
    wrong += [
        f"{who} {_words(balances)}: less than nothing"
        for who, balances in seen
        if not params.overdraft and min(balances.values(), default=0) < 0
    ]
    wrong += _unexplained(work, reads)
    if wrong:
        return invalid(CHECK, f"{count(len(wrong), 'time')} the balances were wrong", wrong)
    if work.kept is None:
        return unknown(CHECK, "nobody could ask for the balances in the end")
    if not reads and params.total is None:
        return unknown(CHECK, "nobody read the balances while they changed")
    return valid(CHECK, f"{count(len(reads), 'read')} and the end sum to {total}")


def _unexplained(work: WorkloadRecord, reads: list[Op]) -> list[str]:
    """Accounts that end with other amounts than the transfers that were done explain.

    Judged where a read came before every transfer, and so tells what the accounts began with.
    """
    transfers = [op for op in work.history if op.f == "transfer" and op.n >= 0]
    sent = [op for op in transfers if op.outcome is Outcome.INVOKE and op.value]
    if work.kept is None or not reads or not sent or reads[0].at_s > sent[0].at_s:
        return []
    meant = _balances(reads[0].value)
    done = by_client(work.kept["done"])
    refused = {(op.client, op.n) for op in transfers if op.outcome is Outcome.FAIL}
    for op in sent:
        if op.n <= done.get(op.client, -1) and (op.client, op.n) not in refused:
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


def _words(balances: Mapping[str, int]) -> str:
    return ", ".join(f"{account}={amount}" for account, amount in sorted(balances.items()))


CHECKS = {
    CHECK: Check(
        "Every read of all accounts, and their state in the end, has the same sum, and every "
        "balance in the end is explained by the transfers that were done.",
        bank_sum,
        Bank,
    )
}
