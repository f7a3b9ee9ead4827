"""The tables of a DARTFormer run, from its lines."""

from typing import Any

import numpy as np
from trial import steps_of

from dartformer.statistics import critical_tau, kendall_tau, welch


def mean_drops(rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """Drops of each type, averaged over the seeds of the masked search."""
    seeds = [row["drops"][metric] for row in rows if row["kind"] == "masked"]
    return {name: float(np.mean([one[name] for one in seeds])) for name in seeds[0]}


def percent(values: list[float]) -> str:
    """Mean and spread over seeds, in percent."""
    spread = f" ({100 * np.std(values, ddof=1):.1f})" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Tables and the answers to the paper's three questions, for each task."""
    text = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        of = {
            kind: {row["name"]: row for row in here if row["kind"] == kind}
            for kind in ("baseline", "grid", "masked", "darts", "spos", "mixed")
        }
        steps = steps_of(task, [*of["grid"].values(), *of["mixed"].values()])
        text.append(f"\n**{task}** ({steps} steps)\n")
        nine = {name: row for name, row in of["grid"].items() if name != "Reformer as in LRA"}
        accuracy, loss = (
            (mean_drops(here, metric) if of["masked"] else {}) for metric in ("accuracy", "loss")
        )
        text += [
            "| model | valid % | test % | accuracy lost when masked, points | rise of loss when masked |",
            "|---|---|---|---|---|",
        ]
        for name in sorted(of["grid"], key=lambda n: -np.mean(of["grid"][n]["valid"])):
            row = of["grid"][name]
            masks = [
                one["drops"]["accuracy"].get(name, float("nan")) for one in of["masked"].values()
            ]
            shown = f"{percent(masks)} | {loss[name]:+.4f}" if name in accuracy else "- | -"
            text.append(f"| {name} | {percent(row['valid'])} | {percent(row['test'])} | {shown} |")
        for name, row in of["mixed"].items():
            kept = " + ".join(
                dict.fromkeys(one.split("(")[0] for layer in row["genotype"] for one in layer)
            )
            text.append(
                f"| *{name}*: {kept} | {percent(row['valid'])} | {percent(row['test'])} | - | - |"
            )
        for name, row in of["baseline"].items():
            text.append(f"| *rule:* {name} | - | {percent(row['test'])} | - | - |")
        if len(nine) > 1 and of["masked"]:
            text += answers(nine, of, accuracy, loss)
    return "\n".join(text)


def answers(
    nine: dict[str, Any],
    of: dict[str, dict[str, Any]],
    accuracy: dict[str, float],
    loss: dict[str, float],
) -> list[str]:
    """Sentences."""
    valid = {name: float(np.mean(row["valid"])) for name, row in nine.items()}
    test = {name: float(np.mean(row["test"])) for name, row in nine.items()}
    best = max(valid, key=lambda n: valid[n])
    chosen = [row["chosen"]["accuracy"] for row in of["masked"].values()]
    by_loss = [row["chosen"]["loss"] for row in of["masked"].values()]
    names = list(valid)
    known = critical_tau(len(names))
    lines = [
        "",
        f"* grid, on valid: {best}. The masked search's choices over its seeds: by accuracy "
        f"{', '.join(chosen)}; by loss {', '.join(by_loss)}.",
    ]
    for what, drops in (("accuracy", accuracy), ("loss", loss)):
        tau = kendall_tau([drops[n] for n in names], [test[n] for n in names])
        lines.append(
            f"* rank correlation (Kendall's tau) of drops by {what} and retrained test accuracy: {tau:+.2f}"
            + (f" (5% of random orders reach {known:.2f})" if known else "")
        )
    for strategy in ("darts", "spos"):
        searches = [row for name, row in of[strategy].items() if name.startswith("model")]
        if searches:
            means = {n: float(np.mean([row["alone"][n] for row in searches])) for n in names}
            tau = kendall_tau([means[n] for n in names], [test[n] for n in names])
            lines.append(
                f"* `{strategy}` chooses {', '.join(row['genotype'][0][0].split('(')[0] for row in searches)} "
                f"in {np.mean([row['search_seconds'] for row in searches]):.0f} s each; best alone with its "
                f"weights: {', '.join(max(row['alone'], key=row['alone'].get) for row in searches)}; rank "
                f"correlation of that accuracy, mean over seeds, with the retrained one: {tau:+.2f}"
            )
    average = float(np.mean(list(test.values())))
    for name, row in of["mixed"].items():
        gap = 100 * (np.mean(row["test"]) - test[best])
        noise = 100 * welch(row["test"], nine[best]["test"])
        lines.append(
            f"* {name}: {100 * (np.mean(row['test']) - average):+.1f} points against the average homogeneous "
            f"model, {gap:+.1f} ± {noise:.1f} against {best}"
        )
    return lines
