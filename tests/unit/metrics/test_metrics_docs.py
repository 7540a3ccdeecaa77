"""docs/metrics.md and the dashboard name the metrics that there are, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.views import PROTECTED

from coloctl.control.daemon.http import ROUTES
from coloctl.metrics import Metrics

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "metrics.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
SUFFIX = {"counter": "_total", "info": "_info"}
#: Made by Prometheus itself.
FOREIGN = {"up"}


def registered() -> Iterator[tuple[str, str, str, tuple[str, ...], str]]:
    """Name, type, unit, labels and help of each metric, as the table has them."""
    metrics = Metrics("web")
    metrics.view(PROTECTED)
    for family in metrics.registry.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        labels -= {"le", "pair", family.name}
        kind = "state set" if family.type == "stateset" else family.type
        name = family.name + SUFFIX.get(family.type, "")
        yield name, kind, family.unit or "-", tuple(sorted(labels)), family.documentation


def series() -> set[str]:
    """Every name that an expression may use."""
    names = set()
    for name, kind, *_ in registered():
        suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


def test_the_table_is_the_registry_s() -> None:
    _, table = TEXT.split("| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n", 1)
    written = []
    for line in table.split("\n\n", 1)[0].splitlines():
        name, kind, unit, labels, meaning = (cell.strip() for cell in line.strip("|").split("|"))
        named = tuple(re.findall(r"`(\w+)`", labels))
        written.append((name.strip("`"), kind, unit, named, meaning))
    assert sorted(written) == sorted(registered())


def test_the_paths_are_the_server_s() -> None:
    _, table = TEXT.split("| path | answer |\n|---|---|\n", 1)
    written = re.findall(r"^\| `([^`]+)`", table.split("\n\n", 1)[0], re.MULTILINE)
    assert set(written) == {"/metrics", *ROUTES}


def used(expression: str) -> set[str]:
    """The names of metrics in an expression of PromQL, labels and their values left out."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)
    bare = re.sub(r"\b(by|on|group_left|without|ignoring)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "by", "on"}


def alerts() -> Iterator[tuple[str, str]]:
    block = TEXT.split("groups:\n", 1)[1].split("```", 1)[0]
    for rule in block.split("- alert: ")[1:]:
        name, rest = rule.split("\n", 1)
        found = re.search(r"expr: (?:>\n)?(.*?)\n +(?:for|labels):", rest, re.DOTALL)
        assert found, name
        yield name, found[1]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    yield from alerts()
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], note["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_uses_metrics_that_there_are(where: str, expression: str) -> None:
    names = used(expression)
    assert names
    assert names <= series() | FOREIGN, where
    assert expression.count("(") == expression.count(")")
    for name in names & {name for name, kind, *_ in registered() if kind == "state set"}:
        for matched in re.findall(name + r"\{([^}]*)\}", expression):
            assert all(word in ("pair", name) for word in re.findall(r"(\w+)!?[=~]", matched))


def test_a_name_that_is_none_would_be_noticed() -> None:
    dancing = 'sum by (pair) (rate(coloctl_dances_total{pair="web"}[5m])) > 0'
    assert used(dancing) == {"coloctl_dances_total"}
    two = "a_seconds * on (instance) group_left (pair) b_info == 1"
    assert used(two) == {"a_seconds", "b_info"}


def test_every_panel_says_what_it_is_and_in_which_unit() -> None:
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        assert panel["title"] and panel["description"].endswith("."), panel["id"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["legendFormat"]
            assert 'pair=~"$pair"' in target["expr"]


def test_panels_lie_side_by_side_and_not_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        across = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in across for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def test_every_metric_of_coloctl_is_on_the_dashboard() -> None:
    text = json.dumps(DASHBOARD)
    for name, *_ in registered():
        if name.startswith("coloctl_"):
            assert name in text, name
