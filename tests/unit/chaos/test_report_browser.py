"""The page in a real browser: everything is drawn, and its console stays silent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import browser, runs

from coloctl.chaos import report
from coloctl.chaos.checks.verdict import Validity, Verdict

FOUND = browser.find()
pytestmark = pytest.mark.skipif(FOUND is None, reason=".ci/setup test has not fetched Chromium")

LOST = Verdict("no_lost_acks", Validity.INVALID, "2 records are missing", ("2:40", "2:41"))

#: Asked in the page: where things are once it is laid out.
PROBE = """
<script>
const told = {};
const box = (one) => one.getBoundingClientRect();
told.charts = [...document.querySelectorAll("svg.chart")].map((one) => box(one).height > 300);
told.lanes = document.querySelectorAll("svg.chart g.lane").length;
told.dots = document.querySelector("svg.chart path.ok").getTotalLength() >= 0;
told.wide = document.documentElement.scrollWidth <= innerWidth;
told.button = getComputedStyle(document.querySelector("button")).display !== "none";
const first = document.querySelector("svg.chart");
const middle = {clientX: box(first).left + box(first).width / 2, bubbles: true};
first.dispatchEvent(new PointerEvent("pointermove", middle));
told.cross = / s$/.test(first.querySelector("text.cross").textContent);
told.paper = getComputedStyle(document.body).backgroundColor;
document.body.setAttribute("data-told", JSON.stringify(told));
</script>
"""


def seen(page: str, folder: Path, *arguments: str) -> tuple[str, list[str]]:
    """The page after its scripts ran, and what its console says."""
    assert FOUND is not None
    file = folder / "report.html"
    file.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    return FOUND.run(
        folder / "home", "--window-size=1366,900", "--dump-dom", *arguments, file.as_uri()
    )


def told(dom: str) -> str:
    found = re.search(r'data-told="([^"]*)"', dom)
    assert found is not None
    return found[1].replace("&quot;", '"')


def test_a_page_is_drawn_without_a_word_on_the_console(tmp_path: Path) -> None:
    dom, console = seen(report.page(runs.outcome()), tmp_path)
    assert console == []
    says = told(dom)
    assert '"charts":[true,true,true]' in says
    assert '"lanes":33' in says, "eleven in each picture"
    for fact in ("dots", "wide", "button", "cross"):
        assert f'"{fact}":true' in says, says
    assert '"paper":"rgb(251, 250, 247)"' in says


def test_an_invalid_run_is_drawn_in_the_dark_too(tmp_path: Path) -> None:
    dark = "--blink-settings=preferredColorScheme=0"
    dom, console = seen(report.page(runs.outcome(verdicts=[LOST])), tmp_path, dark)
    assert console == []
    assert '"paper":"rgb(20, 23, 27)"' in told(dom)
    assert "2:41" in dom


def test_the_console_is_heard(tmp_path: Path) -> None:
    broken = report.page(runs.outcome()).replace("</main>", "</main><script>oh()</script>")
    _, console = seen(broken, tmp_path)
    assert any("oh is not defined" in line for line in console)
