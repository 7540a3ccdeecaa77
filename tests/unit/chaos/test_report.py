"""The page: the whole run is on it, nothing of it comes from elsewhere, and it stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from support import runs

from coloctl.chaos import report
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord, ObservedEvent, WorkloadRecord
from coloctl.chaos.report import operations, scale, strips
from coloctl.chaos.scenario.values import ScheduledFault
from coloctl.chaos.workloads.history import Op
from coloctl.chaos.workloads.history import OpStatus as Answer

#: Bytes; were the operations of the long run not thinned, its page would have 677,000.
SIZE_MAX = 400_000

#: Elements of the page that have no end tag.
VOID = frozenset({"meta", "br", "hr"})


class Reader(HTMLParser):
    """Which elements there are, whether each ends where it should, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(page: str) -> Reader:
    reader = Reader(page)
    assert reader.open == []
    return reader


def test_the_page_tells_the_whole_run() -> None:
    reader = read(report.page(runs.outcome()))
    for words in (
        runs.SCENARIO.title, runs.SCENARIO.why, "Valid", "no_lost_acks", "connections_survive",
        "kill-1", "freeze-1", "primary-dead", "secondary-frozen", "node b promoted", "in COLO",
        "coloctl chaos run scenarios/kill-then-freeze.toml --seed 7", "11.1.3", 'name = "web"',
    ):  # fmt: skip
        assert words in reader.text, words
    charts = [attrs for tag, attrs in reader.seen if attrs.get("class") == "chart"]
    assert len(charts) == 3, "the whole run and each fault"
    assert all(attrs["role"] == "img" for attrs in charts)
    kinds = {attrs.get("class") for _, attrs in reader.seen}
    assert {f"mark {kind}" for kind in strips.KINDS} <= kinds
    states = {"primary", "secondary", "dead", "joining", "colo", "unprotected", "migrating"}
    assert {f"strip {state}" for state in states} <= kinds


def test_nothing_is_loaded_from_anywhere() -> None:
    page = report.page(runs.outcome())
    for _, attrs in read(page).seen:
        assert not {"src", "href", "srcset", "action"} & set(attrs)
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"@import|https?://", page)


def test_a_counterexample_is_on_the_page() -> None:
    lost = Verdict("no_lost_acks", Validity.INVALID, "2 records are missing", ("2:40", "2:41"))
    reader = read(report.page(runs.outcome(verdicts=[lost])))
    assert "no_lost_acks: 2 records are missing" in reader.text
    assert "2:41" in reader.text
    assert "Invalid" in reader.text


def test_a_run_in_which_nothing_happened_has_a_page() -> None:
    void = runs.outcome(Evidence(5.0, 5.0, (), {}), (), "The guest never booted.")
    assert "The guest never booted." in read(report.page(void)).text


def test_a_run_that_ended_before_the_steady_state_has_a_picture() -> None:
    events = [one for one in runs.recorded().events if one.at_s < 999.9]
    early = Evidence(999.9, 999.9, (), {}, events)
    assert "chart" in report.page(runs.outcome(early, (), "It took too long."))


def test_a_takeover_that_never_ended_leaves_its_steps() -> None:
    said = [ObservedEvent(1001.0, "STEP", {"act": "failover", "step": "fenced", "at_ms": 3.0})]
    kinds = [one.kind for one in strips.marks(Evidence(1000.0, 1002.0, (), {}, said))]
    assert kinds == ["fenced"]


@given(st.text(max_size=40))
def test_no_text_breaks_out_of_the_page(words: str) -> None:
    odd = f"</script><script>alert(1)</script>{words}<!--"
    scenario = runs.SCENARIO.model_copy(update={"title": odd, "why": odd})
    verdict = Verdict(odd, Validity.INVALID, odd, (odd,))
    outcome = runs.outcome(Evidence(5.0, 5.0, (), {}), [verdict], odd)
    page = read(report.page(replace(outcome, scenario=scenario, replay=odd, pair_file=odd)))
    assert sum(tag == "script" for tag, _ in page.seen) == 1


def test_a_page_has_one_script() -> None:
    verdict = Verdict("odd", Validity.INVALID, "odd", ("odd",))
    plain = read(report.page(runs.outcome(Evidence(5.0, 5.0, (), {}), [verdict])))
    assert sum(tag == "script" for tag, _ in plain.seen) == 1


def long_run(operations_count: int, faults: int) -> Evidence:
    """Many operations of several workloads, and many faults."""
    works = {}
    for number, spec in enumerate(runs.WORKLOADS):
        history = []
        for n in range(operations_count // 2):
            at_s, client = 1000 + n * 0.002, spec.numbered_from + n % 2
            took_s = 0.001 + (n * 2654435761 % 997) / 997 * 0.05
            took_s = 4.2 if n == 777 * (number + 1) else took_s
            history.append(Op(at_s, client, Answer.INVOKE, n))
            history.append(Op(at_s + took_s, client, Answer.OK, n))
        works[spec.name] = WorkloadRecord(spec, sorted(history, key=lambda op: op.at_s))
    end_s = 1000 + operations_count * 0.001
    events = [
        ObservedEvent(1000 + n * 0.3, "CHECKPOINT",
             {"node": "a", "phase": "end", "count": n, "pause_ms": 20 + n % 7})
        for n in range(int((end_s - 1000) / 0.3))
    ]  # fmt: skip
    faults = [
        FaultRecord(
            ScheduledFault(f"f{n}", "freeze", "secondary", n), 1001 + n, ("b",), healed_s=1001.5 + n
        )
        for n in range(faults)
    ]
    return Evidence(1000.0, end_s, faults, works, events)


def test_a_long_run_has_a_page_of_bounded_size_with_its_slowest_operations() -> None:
    page = report.page(runs.outcome(long_run(40_000, 90), ()))
    assert len(page.encode()) < SIZE_MAX
    assert "the slowest took 4.2 s" in page
    assert "thinned" in page


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=200),
    st.integers(1, 50),
)
def test_thinning_keeps_the_slowest_and_its_bound(
    places: list[tuple[float, float]], most: int
) -> None:
    given_ones = [operations.DrawnOperation(x, x + y, Answer.OK) for x, y in places]
    where = dict(zip(map(id, given_ones), places, strict=True))
    kept = operations.thinned(given_ones, lambda one: where[id(one)], most)
    assert 1 <= len(kept) <= most
    assert set(kept) <= set(places)
    assert min(y for _, y in kept) == min(y for _, y in places)


def test_an_operation_that_nobody_answered_lasts_to_the_end() -> None:
    history = [Op(1.0, 0, Answer.INVOKE, 0), Op(2.0, 0, Answer.OK, 0), Op(3.0, 0, Answer.INVOKE, 1)]
    first, second = operations.drawn_operations(history, 9.0)
    assert (first.ms, second.ms) == (1000, 6000)
    assert second.status is Answer.INFO


@given(st.floats(-1e4, 1e4), st.floats(0.01, 1e4))
def test_an_axis_has_some_ticks_and_all_are_inside(from_s: float, length_s: float) -> None:
    window = scale.Window(from_s, from_s + length_s, from_s + length_s / 3)
    ticks = window.ticks()
    assert 3 <= len(ticks) <= 12
    assert all(scale.LEFT <= window.x(at_s) <= scale.WIDTH for at_s, _ in ticks)


def test_a_node_is_what_the_events_say() -> None:
    evidence = runs.recorded()
    told = evidence.chronicle.nodes(evidence.ended_s)
    b = [one.what for one in told["b"] if one.to_s > evidence.steady_s]
    assert b == ["secondary", "primary"]
    a = [one.what for one in told["a"] if one.to_s > evidence.steady_s]
    assert a[:4] == ["primary", "dead", "joining", "secondary"]
    assert a[-1] == "secondary"
