"""The templates of pages and drawings, and how they are filled in."""

import re

import jinja2
from markupsafe import Markup, escape

LOADER = jinja2.PackageLoader("dartformer.report", "templates")

ENVIRONMENT = jinja2.Environment(
    loader=LOADER,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
"""Everything that is put into a page is escaped, names of tasks and texts of examples above all."""


FLAG = re.compile(r"--config\.[\w.]+=\S*[^\s.,;:)]")
"""A flag of the command line in a sentence."""

COMMAND = re.compile(r"`([^`]+)`")
"""A command in a sentence, as the terminal quotes it."""


def flags(text: str) -> Markup:
    """A sentence whose flags and quoted commands stand out; flags are not broken over lines."""
    marked = FLAG.sub(r'<code class="flag">\g<0></code>', str(escape(text)))
    return Markup(COMMAND.sub(r"<code>\1</code>", marked))


ENVIRONMENT.filters["flags"] = flags


def fill(template: str, **values: object) -> str:
    """A template with its values."""
    return ENVIRONMENT.get_template(template).render(**values)


def source(template: str) -> str:
    """The text of a template as it is in the package, such as a script or a style sheet."""
    text, _, _ = LOADER.get_source(ENVIRONMENT, template)
    return text
