"""Report: what was found, in one self-contained page that needs no network."""

import base64
import html
import io
import json
from typing import Any

from matplotlib.figure import Figure

from dartformer import metric, plots
from dartformer._version import __version__
from dartformer.attention import format as spec
from dartformer.stages import search as search_stage
from dartformer.stages.base import Run
from dartformer.stages.summary import MARKS, number
from dartformer.train import read_metrics
from dartformer.workdir import write_text

STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#6b7280;--line:#d1d5db;--paper:#fff;--card:#f8fafc}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--paper:#111827;--card:#1f2937}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:auto;
padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.verdict{background:var(--card);border-left:4px solid #0072B2;padding:.75rem 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.3rem .7rem;text-align:right;
border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}
img{max-width:100%;background:#fff;border-radius:6px;padding:.4rem}pre{overflow-x:auto;background:var(--card);
padding:.75rem}small,figcaption{color:var(--soft)}figure{margin:1rem 0}
"""


def report(run: Run) -> str:
    """Write `report.html` from what the workdir holds so far; returns the page."""
    results = run.results()
    title = f"dartformer: {run.config.task.name}"
    body = [f"<h1>{html.escape(title)}</h1>"]
    if "verdict" in results:
        body += ['<div class="verdict">', f"<p><strong>{_headline(results)}</strong></p><ul>",
                 *(f"<li>{html.escape(s)}</li>" for s in results["verdict"]), "</ul></div>"]
    else:
        body.append('<p class="verdict">Not evaluated yet: the test part has not been read.</p>')
    if run.file("genotype.json").exists():
        found = run.genotype()
        body += ["<h2>Genotype</h2>",
                 _image(plots.genotype(found, [spec(a) for a in run.space.candidates]), f"Genotype: {found}")]
    if "baselines" in results:
        scored = f"Test {metric.of(results).title}"
        body += [f"<h2>{scored}</h2>", _image(plots.comparison(results), f"{scored} of the found model and of the "
                 "baselines; dots are seeds"), _table(results)]
    searched = search_stage.read(run)
    if searched is not None:
        if any("mixture" in line for line in searched.history):
            body += ["<h2>Search</h2>", _image(plots.trajectories(searched.history, run.space),
                                               "Weights of the mixture over the search")]
        if "seeds" in results.get("derive", {}):
            body.append(f"<p>{html.escape(results['derive']['seeds']['verdict'])}</p>")
        body.append(findings_table(results.get("diagnostics", searched.diagnostics)))
    histories = {str(f.parent.relative_to(run.workdir.path)): read_metrics(f)
                 for name in ("search", "retrain") for f in sorted(run.file(name).rglob("metrics.jsonl"))}
    if histories:
        body += ["<h2>Training</h2>", _image(plots.curves(histories, "loss", "training loss"), "Training loss")]
    if "data" in results:
        body += ["<h2>Data</h2>", f"<pre>{html.escape(json.dumps(results['data'], indent=2))}</pre>"]
    body += ["<h2>How</h2>", f"<p><small>dartformer {__version__}; seeds {list(run.config.retrain.seeds)}; every "
             "number above is on test unless it says otherwise.</small></p>",
             f"<pre>{html.escape(json.dumps(run.config.to_dict(), indent=2, default=list))}</pre>"]
    page = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title>'
            f"<style>{STYLE}</style><body>{''.join(body)}</body></html>\n")
    write_text(run.file("report.html"), page)
    return page


def _headline(results: dict[str, Any]) -> str:
    test = results["test"]
    seeds = f"{len(test['per_seed'])} seed{'s' * (len(test['per_seed']) > 1)}"
    shown, baselines = metric.of(results), results["baselines"]
    value = f"{'' if shown.percent else f'{shown.title} '}{shown.text(test[shown.name])} on test ({seeds})"
    if "majority" not in baselines:
        return html.escape(f"{value}.")
    return html.escape(f"{value}, majority class {shown.text(baselines['majority']['test'][shown.name])}.")


def _table(results: dict[str, Any]) -> str:
    shown = metric.of(results)
    rows = [f"<tr><th>model</th><th>test {shown.title}</th><th>spread</th><th>valid</th><th>parameters</th></tr>"]
    for name, fields in [("found", results), *results["baselines"].items()]:
        test = fields["test"]
        cells = [html.escape(name), shown.text(test[shown.name]),
                 "" if test.get("spread") is None else shown.gap(test["spread"]).removesuffix(" points"),
                 shown.text(fields["valid"][shown.name]) if "valid" in fields else "",
                 f"{fields['parameters']:,}" if "parameters" in fields else ""]
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def findings_table(diagnostics: dict[str, Any]) -> str:
    """Every diagnosis of the search with its limit and where that comes from."""
    if not diagnostics["findings"]:
        return "<ul>" + "".join(f"<li>{html.escape(v)}</li>" for v in diagnostics["verdicts"]) + "</ul>"
    rows = ["<tr><th>can it be believed?</th><th>value</th><th>limit</th><th>verdict</th><th>limit from</th></tr>"]
    for one in diagnostics["findings"]:
        cells = [f"{MARKS[one['fine']][0]} {one['name']}", number(one["value"]), number(one["threshold"]),
                 one["verdict"], one["source"]]
        rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _image(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return (f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}"><figcaption>{text}</figcaption>'
            f"</figure>")
