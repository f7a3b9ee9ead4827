"""The verbs on configs and workdirs: the stages, profile, report and compare."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dartformer import api
from dartformer.cli import checkpoint, engine, terminal
from dartformer.cli.output import print_json
from dartformer.config import PlacementConfig, load_any, load_config
from dartformer.cost.budget import Budget, parse
from dartformer.errors import InputError
from dartformer.export.load import load
from dartformer.machine import compile_cache
from dartformer.machine.printable import printable
from dartformer.machine.progress import say
from dartformer.machine.workdir import jsonable, read_json
from dartformer.placement.study import PlacementWorkdir, is_placement
from dartformer.report import compare as comparison
from dartformer.report import figures, page, placement, plots, reading
from dartformer.report import probes as probes_page
from dartformer.report.watch import watch
from dartformer.results import BudgetAnswer, Front, Profile
from dartformer.stages import clean as cleaning
from dartformer.stages import probe as probing
from dartformer.stages import profile as profiling
from dartformer.stages.entrant import train_entrant
from dartformer.stages.layout import Workdir
from dartformer.stages.predict import predict
from dartformer.training import trace

Item = TypeVar("Item")


def run(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """All stages in order, on an engine if one is named."""
    with engine.trainer_of(arguments) as trainer:
        config = load_any(arguments.config, values)
        if isinstance(config, PlacementConfig):
            _refuse_trace(arguments)
            if trainer is not None:
                raise InputError("--engine does not work with a checkpoint, because nothing races.")
            return checkpoint.run(arguments, config)
        if trainer is not None:
            return _show_stage(arguments, engine.run(arguments, config, trainer))
    with _traced(arguments):
        result = api.run_all(config, arguments.workdir)
    return _show_stage(arguments, result)


def stage(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """One stage without options of its own."""
    if arguments.verb == "evaluate":
        config = load_any(arguments.config, values)
        if isinstance(config, PlacementConfig):
            _refuse_trace(arguments)
            return checkpoint.evaluate(arguments, config)
    else:
        config = load_config(arguments.config, values)
    with _traced(arguments), api.opened(config, arguments.workdir) as session:
        result = api.do(session, arguments.verb)
    return _show_stage(arguments, result)


def _refuse_trace(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for --profile-trace with a checkpoint, which trains in other ways."""
    if arguments.profile_trace is not None:
        raise InputError(
            "--profile-trace does not work with a checkpoint. Use it with a config of a search."
        )


@contextlib.contextmanager
def _traced(arguments: argparse.Namespace) -> Iterator[None]:
    """With --profile-trace, trace some steps of what runs inside, and say where the files are."""
    chosen = getattr(arguments, "profile_trace", None)  # of the verbs that train or evaluate
    if chosen is None:
        yield
        return
    folder = Path(chosen or Path(arguments.workdir) / trace.FOLDER)
    with trace.tracing(folder) as traces:
        yield
    if not traces.kinds:
        say(f"--profile-trace: nothing was traced in {folder}, because all of it was done before")
        return
    say(
        f"traced {' and '.join(traces.kinds)} into {folder}: open a perfetto_trace.json.gz of it at "
        f"https://ui.perfetto.dev, or all with `tensorboard --logdir={folder}` (pip install xprof)"
    )


def race(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """The race, or with --finish the rest of the trainings of entrants that stopped."""
    if arguments.train is not None:
        return _train(arguments, values)
    if arguments.until is not None:
        raise InputError("--until needs --train.")
    with engine.trainer_of(arguments) as trainer:
        config = load_config(arguments.config, values)
        with _traced(arguments), api.opened(config, arguments.workdir) as session:
            if not arguments.finish:
                return _show_stage(arguments, api.do(session, "race", trainer=trainer))
            finished = api.finish(session, arguments.finish, trainer)
            return _show_stage(arguments, finished.to_dict())


def _train(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Train one entrant, for a race that another process holds."""
    if arguments.until is None:
        raise InputError("--train needs --until=STEP.")
    if engine.is_wanted(arguments) or arguments.finish:
        raise InputError("--train does not work with --engine or --finish. Use one of them.")
    config = load_config(arguments.config, values)
    with _traced(arguments):
        leg = train_entrant(config, arguments.workdir, arguments.train, arguments.until)
    if arguments.json:
        print_json({"name": leg.name, "seed": leg.seed, "step": leg.step})
    else:
        print(printable(f"{leg.name} seed {leg.seed} is trained to step {leg.step}"))
    return 0


def export(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Write the trained model, in more formats if wanted."""
    if is_placement(arguments.workdir):
        _require_workdir_config(arguments, values)
        if arguments.entrant:
            raise InputError("--entrant does not work with a checkpoint, because nothing races.")
        return checkpoint.export(arguments, formats(arguments.format or ()))
    if not arguments.config:
        raise InputError("export needs --config=FILE, the config of the workdir.")
    config = load_config(arguments.config, values)
    with api.opened(config, arguments.workdir) as session:
        named = formats(arguments.format or ())
        result = api.do(session, "export", formats=named, entrant=arguments.entrant)
    return _show_stage(arguments, result)


def _show_stage(arguments: argparse.Namespace, result: Mapping[str, object]) -> int:
    if arguments.json:
        print_json(result)
    else:
        terminal.show(arguments.verb, result, Path(arguments.workdir))
    return 0


def formats(texts: Sequence[str]) -> tuple[str, ...]:
    """The names in `--format=onnx,torch`, which may be repeated; each name once, in order."""
    names: dict[str, None] = {}  # a dict and not a set, which has no order
    for text in texts:
        for name in text.split(","):
            if name.strip():
                names[name.strip()] = None
    return tuple(names)


def derive(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """The genotype of a finished search, or with --budget the best one within it."""
    if is_placement(arguments.workdir):
        _require_workdir_config(arguments, values)
        return checkpoint.derive(arguments)
    if not arguments.config:
        raise InputError("derive needs --config=FILE, the config of the workdir.")
    if arguments.budget:
        return _derive_within_budget(arguments, values)
    if arguments.table or arguments.trust_table or arguments.plot:
        raise InputError("--table, --trust-table and --plot go with --budget.")
    return stage(arguments, values)


def _derive_within_budget(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    limits = parse(arguments.budget)
    if arguments.table:
        limits["table"] = arguments.table
    if arguments.trust_table:
        limits["trust_table"] = True
    budget = Budget.of(limits, "--budget")
    config = load_config(arguments.config, values)
    # Measuring latencies compiles many small programs, the same ones every time.
    compile_cache.use()
    with api.opened(config, arguments.workdir) as session:
        result = api.derive_within(session, budget).to_dict()
    if arguments.plot:
        front = Front.from_dict(read_json(Path(arguments.workdir) / "pareto.json"))
        plots.pareto(front).save(arguments.plot)
    if arguments.json:
        print_json(result)
    else:
        answer = BudgetAnswer.from_dict(jsonable(result))
        terminal.show_budget(answer, Path(arguments.workdir))
    return 0


def profile(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """The price of a workdir's genotype, of a genotype file, of a search space or of an export."""
    sources = []
    for name in ("workdir", "genotype", "export"):
        if getattr(arguments, name):
            sources.append(name)
    if len(sources) > 1:
        raise InputError(
            f"--{sources[0]} does not work with --{sources[1]}, because profile prices one model. "
            "Use one of them."
        )
    if arguments.export and (arguments.config or values):
        raise InputError(
            "--config does not work with --export, because an export brings its own config. "
            "Leave it out."
        )
    if not arguments.export and not arguments.config:
        raise InputError(
            "profile needs --export, or --config (alone, or with --workdir or --genotype)."
        )
    if arguments.on:
        return _predict(arguments, values)
    lengths = profiling.parse_lengths(arguments.length)
    batch = 1
    if arguments.batch is not None:
        batch = arguments.batch
    at = profiling.At(batch, lengths, arguments.phase, arguments.repeats)
    compile_cache.use()
    if arguments.export:
        model = load(arguments.export).model
        genotypes = {"exported": model.genotype}
        result = profiling.profile_all(model.shape, genotypes, at, True).to_dict()
    else:
        result = _profile_config(arguments, values, at)
    # As from a file, so that the tables and the plot show what --json prints.
    record = Profile.from_dict(jsonable(result))
    if arguments.plot:
        plots.profile(record).save(arguments.plot)
    if arguments.json:
        print_json(result)
    else:
        terminal.show_profile(record)
    return 0


def _predict(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """What the steps cost on a device that is not here."""
    if arguments.export:
        raise InputError(
            "--on does not work with --export, because it prices steps of training. Use --config "
            "and --genotype."
        )
    defaults = {"length": "", "phase": "forward", "repeats": 20, "plot": None}
    for name, default in defaults.items():
        if getattr(arguments, name) != default:
            raise InputError(
                f"--{name} does not work with --on, which prices steps of training as the config "
                f"has them. Leave it out."
            )
    if arguments.batch is not None and arguments.batch < 1:
        raise InputError(f"batch must be a whole number of at least 1, got {arguments.batch}.")
    config = load_config(arguments.config, values)
    genotypes = {}
    if arguments.genotype:
        genotypes = {"given": profiling.read_genotype(arguments.genotype)}
    elif arguments.workdir:
        with Workdir(arguments.workdir, config) as workdir:
            genotypes = {"found": workdir.read_genotype()}
    source = (arguments.config, values)
    result = predict(config, source, genotypes, arguments.on, arguments.batch or 0)
    if arguments.json:
        print_json(result.to_dict())
    else:
        terminal.show_prediction(result)
    return 0


def _profile_config(
    arguments: argparse.Namespace, values: dict[str, str], at: profiling.At
) -> dict[str, Any]:
    config = load_config(arguments.config, values)
    if arguments.workdir:
        with api.opened(config, arguments.workdir) as session:
            genotype = session.workdir.read_genotype()
            return profiling.profile(*session, genotype, at, detail=True).to_dict()
    if arguments.genotype:
        genotypes = {"given": profiling.read_genotype(arguments.genotype)}
        return profiling.profile_asked(config, genotypes, at).to_dict()
    return profiling.profile_asked(config, {}, at).to_dict()


def report(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Write the report of a workdir, or serve it."""
    # The folder can follow the verb, --workdir or --watch, but is one.
    folders = list(filter(None, (arguments.folder, arguments.workdir, arguments.watch)))
    if len(folders) != 1:
        names = ", ".join(folders) or "none"
        raise InputError(f"report takes one workdir, got {names}.")
    if values and arguments.config is None:
        raise InputError("--config.section.field=VALUE changes a config. Name it: --config=FILE.")
    if arguments.watch is None and arguments.port:
        raise InputError("--port needs --watch.")
    (folder,) = folders
    if arguments.config is not None:
        _require_config(folder, arguments.config, values)
    files: list[Path] = []
    if arguments.figures is not None:
        files = figures.save(folder, arguments.figures)
    if arguments.watch is not None:
        try:
            watch(folder, arguments.port)
        except KeyboardInterrupt:  # the documented way to end it
            return 0
    show, write = terminal.show_report, page.report
    check: Callable[[str], object] = reading.read
    if is_placement(folder):
        show, write, check = checkpoint.show_report, placement.report, placement.read
    try:
        write(folder)
    except InputError as error:
        # What can be read is shown where only the page cannot be written; a damaged file is named.
        check(folder)
        if not arguments.json:
            show(folder)
        raise InputError(
            f"{error} Use --watch={folder}, which shows the page without writing it."
        ) from None
    html = str(Path(folder) / "report.html")
    drawn = list(map(str, files))
    if arguments.json:
        print_json({"file": html, "figures": drawn})
        return 0
    show(folder)
    for file in (html, *drawn):
        print(printable(f"wrote {file}"))
    return 0


def _require_workdir_config(arguments: argparse.Namespace, values: dict[str, str]) -> None:
    """Raise `InputError` where --config, which may be left out, is not that of the workdir."""
    if values and not arguments.config:
        raise InputError("--config.section.field=VALUE changes a config. Name it: --config=FILE.")
    if arguments.config:
        _require_config(arguments.workdir, arguments.config, values)


def _require_config(folder: str, file: str, values: dict[str, str]) -> None:
    """Raise `InputError` for a workdir that was made with another config."""
    config = load_any(file, values)
    # Opening the workdir compares its config with this one.
    if isinstance(config, PlacementConfig):
        PlacementWorkdir(folder, config).close()
    else:
        Workdir(folder, config).close()


def probe(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """A genotype, or every candidate, on the probes."""
    genotypes = None
    if arguments.genotype:
        file = arguments.genotype
        genotypes = {Path(file).stem: profiling.read_genotype(file)}
    probed = api.probe(
        load_config(arguments.config, values),
        arguments.workdir,
        genotypes,
        probes=_listed(arguments.probes, str, "names") or probing.PROBES,
        size=arguments.size,
        rates=_listed(arguments.rates, float, "numbers"),
        lengths=_listed(arguments.lengths, int, "whole numbers"),
    )
    if arguments.json:
        print_json(probed.to_dict())
        return 0
    terminal.show_probes(probed)
    print(printable(f"wrote {Path(arguments.workdir) / probes_page.FILE}"))
    return 0


def _listed(text: str | None, kind: Callable[[str], Item], name: str) -> list[Item]:
    """The items of a text between its commas."""
    items = []
    for word in filter(None, map(str.strip, (text or "").split(","))):
        try:
            items.append(kind(word))
        except ValueError:
            raise InputError(f"{word!r} is none of the {name} between commas.") from None
    return items


def clean(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Remove what a finished run does not need."""
    cleaned = cleaning.clean(arguments.folder, dry_run=arguments.dry_run)
    if arguments.json:
        print_json(cleaned.to_dict())
    else:
        terminal.show_cleaned(cleaned)
    return 0


def compare(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Several workdirs side by side."""
    result = comparison.compare(arguments.folders)
    if arguments.html:
        comparison.write(result, arguments.html)
    if arguments.json:
        print_json(result.to_dict())
        return 0
    terminal.show_comparison(result)
    if arguments.html:
        print(printable(f"wrote {arguments.html}"))
    return 0
