"""The tables of a wide-against-deep run, from its lines."""

from typing import Any

import numpy as np
from trial import interval, steps_of


def summary(rows: list[dict[str, Any]]) -> str:
    """A table of test accuracy for each task, deepest against widest, and the mean differences with
    their intervals.

    Differences are paired by seed: within a type and task over its seeds; over types and tasks the
    mean of a task and type is one number, since seeds of one cell are not independent evidence
    about other types."""
    text, everywhere, vanilla = [], [], []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        by = {(row["type"], row["shape"]): row for row in of_task}
        shapes = sorted({row["shape"] for row in of_task}, key=lambda s: -int(s.split("x")[0]))
        deep, wide = shapes[0], shapes[-1]
        text += [
            f"\n**{task}** ({steps_of(task, of_task)} steps, seeds {of_task[0]['seeds']}, test examples "
            f"{of_task[0]['test_examples']})\n",
            f"| type | {' | '.join(shapes)} | {wide} - {deep}, points | "
            f"parameters, {deep} : {wide} | processor time of training, {deep} : {wide} |",
            "|---" * (len(shapes) + 4) + "|",
        ]
        gaps = []
        for name in dict.fromkeys(row["type"] for row in of_task):
            cells = [
                f"{100 * np.mean(by[name, s]['test']):.1f} ({100 * np.std(by[name, s]['test'], ddof=1):.1f})"
                if (name, s) in by
                else "-"
                for s in shapes
            ]
            tail = "- | - | -"
            if (name, deep) in by and (name, wide) in by and deep != wide:
                a, b = by[name, deep], by[name, wide]
                mean, half = interval(100 * (np.array(b["test"]) - np.array(a["test"])))
                gaps.append(mean)
                everywhere.append(mean)
                if name == "Transformer":
                    vanilla.append(mean)
                tail = (
                    f"{mean:+.1f} ± {half:.1f} | {a['parameters'] / b['parameters']:.2f} | "
                    f"{a['cpu_seconds'] / b['cpu_seconds']:.2f}"
                )
            text.append(f"| {name} | {' | '.join(cells)} | {tail} |")
        if len(gaps) > 1:
            mean, half = interval(gaps)
            text.append(
                f"| *mean of {len(gaps)} types* | {'| ' * len(shapes)}{mean:+.1f} ± {half:.1f} | | |"
            )
    for what, gaps in (("all tasks and types", everywhere), ("Transformer, all tasks", vanilla)):
        if len(gaps) > 1:
            mean, half = interval(gaps)
            text.append(
                f"\n{what}: wide - deep = {mean:+.2f} ± {half:.2f} points (95%, {len(gaps)} cells)"
            )
    return "\n".join(text)
