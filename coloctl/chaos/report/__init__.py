"""Make the page of a run for people: one file that needs no network, in light and in dark.

Called by `chaos.run.artifacts` and by `cli.verbs.chaos`; calls `chaos.report.sections` for what the
template shows. Jinja comes with the extra ``demo``, as the clients do: it is imported when a page
is made.
Invariant: each text that is put into the template is escaped.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from coloctl import __version__
from coloctl.chaos.report import sections
from coloctl.chaos.report.markup import Markup, visible
from coloctl.chaos.report.scale import duration
from coloctl.chaos.run.result import RunResult

if TYPE_CHECKING:
    import jinja2

#: No text of a scenario can make the page load anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(run: RunResult) -> str:
    """Make the whole HTML document; its size is bounded, however long the run was."""
    css, js = Markup(_file("page.css")), Markup(_file("page.js"))
    return _template().render(
        **sections.values(run), css=css, js=js, policy=POLICY, version=__version__
    )


@cache
def _template() -> jinja2.Template:
    """Compile the template once in a process, which takes longer than to fill it."""
    import jinja2

    @jinja2.pass_context
    def node_place(context: jinja2.runtime.Context, node: str) -> str:
        run: RunResult = context["run"]
        return run.place(node)

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"duration": duration, "seconds": sections.seconds}
    environment.filters["node_place"] = node_place
    return environment.from_string(_file("page.html.j2"))


def _shown(value: object) -> object:
    """Make control characters visible; markup stays as it is."""
    return value if hasattr(value, "__html__") else visible(str(value))


def _file(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
