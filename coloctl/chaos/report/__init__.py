"""A page for people about one run: one file that needs no network, in light and in dark."""

from __future__ import annotations

from importlib import resources

from coloctl import __version__
from coloctl.chaos.report import sections
from coloctl.chaos.report.markup import Markup, tag
from coloctl.chaos.run.result import RunResult

#: Nothing is loaded from anywhere, whatever the texts of a scenario say.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(outcome: RunResult) -> str:
    """The whole HTML document; bounded in size, however long the run was."""
    document = outcome.to_json()
    title = f"{outcome.validity}: {outcome.scenario.title}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", _file("page.css")),
    )
    body = tag(
        "body",
        tag(
            "main",
            sections.head(outcome, document),
            sections.picture(outcome),
            sections.verdicts(outcome),
            sections.faults(document),
            sections.takeovers(document),
            sections.again(outcome),
            tag("footer", f"Made by coloctl {__version__}."),
        ),
        tag("script", _file("page.js")),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _file(name: str) -> Markup:
    return Markup((resources.files(__name__) / name).read_text(encoding="utf-8"))
