"""The results of a run as a notebook shows them: the verdict, the genotype, a table and a plot."""

import re
from collections.abc import Mapping

from markupsafe import Markup

from dartformer.report import drawing, markup, plots
from dartformer.report.models import distinct, titles
from dartformer.report.verdicts import scored, sentence
from dartformer.results import ModelScores, Results
from dartformer.space.genotype import in_words
from dartformer.training import metric

FLAG = re.compile(r"--config\.([\w.]+)=")
"""A field of the config that a sentence proposes to set."""

SHOWN = 12
"""Rows of the table that are shown, the best first."""


def table(results: Results) -> list[dict[str, object]]:
    """A row for each model and rule, the best on test first; empty before evaluation."""
    measure = metric.find(results.measure)
    named = titles(results)
    rows: list[dict[str, object]] = []
    for name, model in distinct(results).items():
        row: dict[str, object] = {
            "name": name,
            "model": named[name],
            "metric": measure.name,
            "test": model.test.mean,
        }
        if isinstance(model, ModelScores):
            row |= {
                "spread": model.test.spread,
                "seeds": len(model.test.per_seed),
                "valid": model.valid.mean,
                "parameters": model.parameters,
                "flops": model.flops,
                "genotype": in_words(model.genotype.layers),
            }
        rows.append(row)

    def merit(row: Mapping[str, object]) -> float:
        return measure.objective({measure.name: float(str(row["test"]))})

    return sorted(rows, key=merit, reverse=True)


def sentences(results: Results) -> list[str]:
    """The conclusion, the score and the comparisons."""
    lines: list[str] = []
    if results.conclusion is not None:
        lines += results.conclusion.sentences
    lines.append(scored(results))
    lines += map(sentence, results.verdict or ())
    return list(map(_in_python, lines))


def _in_python(line: str) -> str:
    """A sentence with arguments of `fit` in place of the flags of the command line."""

    def argument(flag: re.Match[str]) -> str:
        return f"{flag[1].replace('.', '__')}="

    return FLAG.sub(argument, line)


def text(results: Results) -> str:
    """The same sentences, one a line."""
    return "\n".join(sentences(results))


def html(results: Results) -> str:
    """What a notebook shows, in one piece: no script and no file beside it."""
    measure = metric.find(results.measure)
    rows = []
    for row in table(results)[:SHOWN]:
        parameters = row.get("parameters")
        count = ""
        if isinstance(parameters, int):
            count = f"{parameters:,}"
        score = measure.text(float(str(row["test"])))
        rows.append((row["model"], score, count))
    cells = plot = ""
    if results.genotype is not None:
        cells = drawing.svg(drawing.draw(results.genotype.layers))
    if results.models:
        plot = plots.comparison(results).svg
    return markup.fill(
        "notebook.html",
        lines=sentences(results),
        genotype=Markup(cells),
        plot=Markup(plot),
        columns=("model", f"{measure.title} on test", "parameters"),
        rows=rows,
    )
