"""The templates of pages and drawings, and how they are filled in."""

import jinja2

LOADER = jinja2.PackageLoader("dartformer.report", "templates")

ENVIRONMENT = jinja2.Environment(
    loader=LOADER,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
"""Everything that is put into a page is escaped, names of tasks and texts of examples above all."""


def fill(template: str, **values: object) -> str:
    """A template with its values."""
    return ENVIRONMENT.get_template(template).render(**values)


def source(template: str) -> str:
    """The text of a template as it is in the package, such as a script or a style sheet."""
    text, _, _ = LOADER.get_source(ENVIRONMENT, template)
    return text
