"""The grammar of the command line: its verbs, their options, the examples and the exit codes."""

import argparse
import textwrap
from typing import NoReturn

from dartformer.errors import InputError

FAILED_CHECK, USER_ERROR, DIVERGED, UNEXPECTED = 1, 2, 3, 4

EXIT_CODES = """exit codes:
  0  success
  1  selfcheck missed an answer, doctor found a problem, or inspect an unreadable checkpoint
  2  invalid input or configuration (see stderr)
  3  training diverged; the last good checkpoint is kept
  4  unexpected error (rerun with --debug)
  128 + n  stopped by signal n (130: Ctrl-C); progress is saved, rerun to continue"""

EXAMPLES = {
    "run": (
        "dartformer run --config=my_space.py --workdir=runs/mine",
        "dartformer run --config=my_space.py --workdir=runs/other --config.search.steps=500 --quiet --json",
        "dartformer run --config=my_space.py --workdir=runs/mine --engine=processes --jobs=2",
    ),
    "search": ("dartformer search --config=my_space.py --workdir=runs/mine",),
    "derive": (
        "dartformer derive --config=my_space.py --workdir=runs/mine",
        "dartformer derive --config=my_space.py --workdir=runs/mine --budget=latency_ms=2",
        "dartformer derive --workdir=runs/mine --budget=kv_bytes=40MB,length=8192",
    ),
    "race": (
        "dartformer race --config=my_space.py --workdir=runs/mine",
        "dartformer race --config=my_space.py --workdir=runs/mine --finish=linear",
    ),
    "retrain": ("dartformer retrain --config=my_space.py --workdir=runs/mine",),
    "evaluate": ("dartformer evaluate --config=my_space.py --workdir=runs/mine --json",),
    "profile": (
        "dartformer profile --config=my_space.py --workdir=runs/mine",
        "dartformer profile --export=runs/mine/export --batch=8",
        "dartformer profile --config=my_space.py --on=tpu-v5e",
    ),
    "export": ("dartformer export --config=my_space.py --workdir=runs/mine --format=onnx,torch",),
    "report": ("dartformer report runs/mine --watch",),
    "clean": ("dartformer clean runs/mine --dry-run", "dartformer clean runs/mine"),
    "compare": ("dartformer compare runs/a runs/b --html=compare.html",),
    "probe": (
        "dartformer probe --config=my_space.py --workdir=runs/probes",
        "dartformer probe --config=my_space.py --workdir=runs/probes --probes=parity,recall --lengths=1,2,4,8",
    ),
    "sweep": (
        "dartformer sweep --config=my_space.py --workdir=runs/sweep "
        "--over=search.strategy.name=darts,spos --over=seed=0..4",
        "dartformer sweep --config=my_space.py --workdir=runs/steps "
        "--over=retrain.steps=500,1000 --jobs=2",
        "dartformer sweep --config=my_space.py --workdir=runs/seeds --over=seed=0..9 "
        "--engine=slurm --slurm=partition=gpu",
    ),
    "new": (
        "dartformer new --task=listops > my_space.py",
        "dartformer new --data=reviews.csv > my_space.py",
        "dartformer new --from=SmolLM2-135M --data=text.txt > my_space.py",
    ),
    "list": ("dartformer list attentions --causal --linear", "dartformer list tasks --json"),
    "selfcheck": ("dartformer selfcheck",),
    "predict": (
        'dartformer predict runs/mine/export --text "[MAX 2 9 ]"',
        "dartformer predict runs/mine/export --jsonl=- < questions.jsonl > answers.jsonl",
    ),
    "generate": (
        'dartformer generate runs/mine/export --prompt "It was a" --max-tokens=80 --temperature=0.8',
        'dartformer generate runs/mine --prompt "One" --prompt "Two" --stop="." --json',
    ),
    "inspect": (
        "dartformer inspect SmolLM2-135M-Instruct",
        "dartformer inspect SmolLM2-135M-Instruct --json",
    ),
    "push": ("dartformer push runs/mine/export --repo=me/my-model --dry-run",),
    "doctor": ("dartformer doctor", "dartformer doctor --json"),
    "completion": (
        "source <(dartformer completion bash)",
        "dartformer completion fish > ~/.config/fish/completions/dartformer.fish",
    ),
}
"""For each verb, the examples at the end of its `--help`."""

STAGES = {
    "run": "run all stages in order, resuming where an earlier run stopped",
    "search": "search for a mixture of attentions",
    "derive": "derive a genotype from a finished search",
    "race": "race the genotype against its rivals, and keep the best",
    "retrain": "train the genotype from scratch",
    "evaluate": "evaluate the finalists on test, and judge the result",
    "profile": "count parameters and FLOPs, and measure latency on this device",
    "export": "write the trained model as a self-contained folder",
}
"""The verbs that take a config and a workdir, with their help."""

TRACED = ("run", "search", "race", "retrain", "evaluate")
"""The verbs of `STAGES` that train or evaluate."""

# argparse keeps its table of verbs in a class without a public name.
Verbs = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """A parser that reports errors like every other module: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`."""
        raise InputError(f"{message}. See {self.prog} --help.")


def parser() -> argparse.ArgumentParser:
    """The grammar of the whole command line."""
    top = Parser(
        prog="dartformer",
        description="Find the best attention for each layer or head of a Transformer.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for name in STAGES:
        _add_stage(verbs, name)
    _add_report(verbs)
    _add_clean(verbs)
    _add_compare(verbs)
    _add_probe(verbs)
    _add_sweep(verbs)
    _add_new(verbs)
    _add_list(verbs)
    _add_selfcheck(verbs)
    _add_predict(verbs)
    _add_generate(verbs)
    _add_inspect(verbs)
    _add_push(verbs)
    _add_doctor(verbs)
    _add_completion(verbs)
    for verb in verbs.choices.values():
        verb.add_argument(
            "--quiet", action="store_true", help="print only the result and errors, no progress"
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def _add(
    verbs: "Verbs[Parser]", name: str, summary: str, details: str = ""
) -> argparse.ArgumentParser:
    """Add a verb. `summary` is its line in the list of verbs, `details` more for its own help."""
    examples = textwrap.indent("\n".join(EXAMPLES[name]), "  ")
    # argparse would wrap the examples too, so the formatter is raw and the description is wrapped.
    description = f"{summary[0].upper()}{summary[1:]}. {details}"
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 78),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return verb


def _add_json(verb: argparse.ArgumentParser, content: str = "the result") -> None:
    verb.add_argument(
        "--json", action="store_true", help=f"print {content} as JSON on standard output"
    )


def _add_stage(verbs: "Verbs[Parser]", name: str) -> None:
    verb = _add(
        verbs, name, STAGES[name], "Set any config field with --config.section.field=VALUE."
    )
    # argparse knows no "one of these sets", so the verb itself checks what goes together.
    # `profile` can also price a genotype or an export, which have no workdir.
    required = name != "profile"
    # Of a checkpoint's workdir these need no config.
    needs_config = required and name not in ("derive", "export")
    verb.add_argument(
        "--config",
        required=needs_config,
        metavar="FILE",
        help="a config file (see `dartformer new`)",
    )
    verb.add_argument(
        "--workdir", required=required, metavar="DIR", help="the folder for all results"
    )
    _add_json(verb)
    if name == "derive":
        _add_budget_options(verb)
    if name == "race":
        verb.add_argument(
            "--finish",
            action="append",
            metavar="ENTRANT",
            help="train an entrant that stopped to the end, and score it on valid",
        )
        verb.add_argument(
            "--train",
            metavar="FOLDER",
            help="train one entrant alone, in trainings/NAME/SEED of the workdir, up to --until; "
            "this is what an engine runs",
        )
        verb.add_argument("--until", type=int, metavar="STEP", help="with --train: the last step")
    if name in ("run", "race"):
        _add_engine_options(verb, None)
    verb.add_argument(
        "--no-compile-cache",
        action="store_true",
        help="compile every program again, and keep none in the user's cache folder",
    )
    if name in TRACED:
        verb.add_argument(
            "--hosts",
            metavar="WHICH",
            help="share the work with other processes: auto (what SLURM, Open MPI, Kubernetes or Cloud "
            "TPU started), ADDRESS:PORT,N,I (process I of N; process 0 is at the address), local:N (N "
            "processes here), or ready (jax.distributed.initialize was called)",
        )
        verb.add_argument(
            "--profile-trace",
            nargs="?",
            const="",  # --profile-trace alone: a folder of the workdir
            metavar="FOLDER",
            help="trace ten steps of the search, of a training and of an evaluation, for Perfetto or "
            "TensorBoard (default folder: WORKDIR/profile)",
        )
    if name == "profile":
        _add_profile_options(verb)
    if name == "export":
        verb.add_argument(
            "--entrant",
            metavar="NAME",
            help="a finalist of the race (default: the winner), such as `linear` for the model "
            "with linear everywhere",
        )
        verb.add_argument(
            "--format",
            action="append",
            metavar="NAMES",
            help="more formats, separated by commas: onnx, tensorflow, torch (each needs the extra "
            "of the same name); of a checkpoint hf, the folder of Hugging Face (default there)",
        )


def _add_engine_options(verb: argparse.ArgumentParser, default: str | None) -> None:
    """The engine and its limits; None: without --engine nothing is a task."""
    text = (
        "processes on this machine, ray (RAY_ADDRESS, or a local cluster) or slurm; the last two "
        "need the extra of the same name"
    )
    if default is None:
        text = f"what trains the entrants of the race side by side, each in a process: {text}"
    else:
        text = f"what runs the tasks: {text} (default: {default})"
    verb.add_argument("--engine", default=default, metavar="NAME", help=text)
    numbers = {
        "jobs": "tasks at the same time (default: one for each GPU; without GPUs one; with ray and "
        "slurm as many as there is room for)",
        "devices": "GPUs of each task (default: one, if there are any; with slurm none)",
        "cpus": "cores of each task (default: an equal share; with ray and slurm one)",
        "memory": "gigabytes of each task, with ray and slurm",
        "minutes": "time of each task, with slurm; one that takes longer is saved and continued",
        "tries": "how often a task is started before it counts as failed (default: 3)",
    }
    for name, meaning in numbers.items():
        verb.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    verb.add_argument(
        "--slurm",
        action="append",
        metavar="KEY=VALUE[,...]",
        help="more options of SLURM, such as partition=gpu,account=mine",
    )


def _add_budget_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--budget",
        action="append",
        metavar="KEY=VALUE[,...]",
        help="pick the best genotype within a budget without searching again. Limits: latency_ms, "
        "parameters, flops, memory_bytes, kv_bytes; measured at batch, length, phase. With on=tpu-v5e "
        "or on=h100 latencies are predicted for that device. Also writes pareto.json, the front of "
        "accuracy against cost",
    )
    verb.add_argument(
        "--table",
        metavar="FILE",
        help="the table of measured latencies (default: one in the user's cache folder)",
    )
    verb.add_argument(
        "--trust-table", action="store_true", help="accept a table measured on another device"
    )
    verb.add_argument("--plot", metavar="FILE", help="draw the front as .svg, .png or .pdf")


def _add_profile_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--genotype",
        metavar="FILE",
        help="price this genotype at the sizes of --config (default, without --workdir: the "
        "homogeneous models of the config's search space)",
    )
    verb.add_argument("--export", metavar="DIR", help="price an exported model, without --config")
    verb.add_argument(
        "--on",
        metavar="DEVICE",
        help="predict the steps of the search and of training on a device that is not here, by "
        "its own compiler: tpu-v5e or h100. Needs `pip install 'dartformer[aot]'`",
    )
    verb.add_argument(
        "--batch",
        type=int,
        help="examples per batch (default: 1; with --on, data.batch_size)",
    )
    verb.add_argument(
        "--length",
        default="",
        metavar="N[,N...]",
        help="tokens; several values are a sweep (default: the longest input of the model)",
    )
    verb.add_argument(
        "--phase",
        default="forward",
        help="'forward'; 'train', a forward and a backward pass; or 'decode', one more token after "
        "--length tokens, by formula (default: forward)",
    )
    verb.add_argument("--repeats", type=int, default=20, help="timed calls (default: 20)")
    verb.add_argument("--plot", metavar="FILE", help="draw the profile as .svg, .png or .pdf")


def _add_report(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "report",
        "write report.html, or serve it during a run",
        "Every stage also refreshes the report. Safe to run while a run is in progress.",
    )
    verb.add_argument("folder", nargs="?", metavar="DIR", help="the workdir")
    verb.add_argument("--workdir", metavar="DIR", help="the workdir, as for the other verbs")
    verb.add_argument(
        "--config", metavar="FILE", help="refuse a workdir that was made with another config"
    )
    verb.add_argument(
        "--watch",
        nargs="?",
        const="",  # --watch alone, where the workdir is named in another way
        metavar="DIR",
        help="serve the page on this machine only and refresh it whenever the run writes something; "
        "stop with Ctrl-C",
    )
    verb.add_argument(
        "--port", type=int, default=0, help="port for --watch (default: any free port)"
    )
    verb.add_argument(
        "--figures",
        metavar="KIND",
        help="also write every figure to DIR/figures, as pdf, svg or png",
    )
    _add_json(verb, "the names of the files")


def _add_clean(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "clean",
        "remove what the report and the export of a finished run do not need",
        "Removes checkpoints of the search and of the models that did not win, and TensorBoard "
        "events. The results, logs, report and export stay, and the winner's best and last "
        "checkpoints.",
    )
    verb.add_argument("folder", metavar="WORKDIR", help="the workdir of a finished run")
    verb.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    _add_json(verb, "what was removed")


def _add_compare(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "compare",
        "compare several runs",
        "Shows the seeds and their spread, whether differences are significant, and where the "
        "genotypes differ.",
    )
    verb.add_argument("folders", nargs="+", metavar="DIR", help="two or more workdirs")
    verb.add_argument("--html", metavar="FILE", help="write a page with overlaid curves")
    _add_json(verb, "the comparison")


def _add_probe(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "probe",
        "train a genotype or all candidates on small tasks that each need one ability",
        "The sizes of the model, the candidates and the training are those of the config. Writes "
        "probes.json and probes.html. Run it again to continue. Set any config field with "
        "--config.section.field=VALUE.",
    )
    verb.add_argument(
        "--config", required=True, metavar="FILE", help="a config file (see `dartformer new`)"
    )
    verb.add_argument("--workdir", required=True, metavar="DIR", help="the folder for all results")
    verb.add_argument(
        "--genotype",
        metavar="FILE",
        help="a genotype.json to train (default: each candidate everywhere)",
    )
    verb.add_argument(
        "--probes", metavar="NAMES", help="tasks, separated by commas (default: all of the suite)"
    )
    verb.add_argument(
        "--size", default="small", metavar="SIZE", help="small or published (default: small)"
    )
    verb.add_argument(
        "--rates",
        metavar="NUMBERS",
        help="learning rates to try, separated by commas (default: that of the config)",
    )
    verb.add_argument(
        "--lengths",
        metavar="FACTORS",
        help="also test at these multiples of the length of training, such as 1,2,4,8",
    )
    _add_json(verb)
    verb.add_argument(
        "--no-compile-cache",
        action="store_true",
        help="compile every program again, and keep none in the user's cache folder",
    )


def _add_sweep(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "sweep",
        "run one config with several values for some of its fields",
        "Each choice of values is a task with a workdir of its own in the sweep's. A task is "
        "started again after a crash, but not after invalid input or divergence. Writes sweep.json "
        "and sweep.html. Run it again to continue. Set any config field with "
        "--config.section.field=VALUE.",
    )
    verb.add_argument(
        "--config", required=True, metavar="FILE", help="a config file (see `dartformer new`)"
    )
    verb.add_argument("--workdir", required=True, metavar="DIR", help="the folder of the sweep")
    verb.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="FIELD=VALUES",
        help="a config field with its values, separated by commas; 0..4 are the whole numbers from "
        "0 to 4. Several make the product of their values",
    )
    verb.add_argument(
        "--verb",
        dest="verb_of_tasks",
        default="run",
        metavar="VERB",
        help="what each task does: run, search, derive, race, retrain or evaluate (default: run)",
    )
    _add_engine_options(verb, "processes")
    _add_json(verb, "the table")


def _add_new(verbs: "Verbs[Parser]") -> None:
    verb = _add(verbs, "new", "print a starting config")
    verb.add_argument("--task", help="a name from `dartformer list tasks` (default: listops)")
    verb.add_argument(
        "--size",
        default="small",
        help="'small' for two CPU cores, 'published' for the size known from the literature, "
        "'mixes' for a task that no single attention solves (recall) (default: small)",
    )
    verb.add_argument(
        "--data",
        metavar="FILE",
        help="read your own file or folder and write a config that runs as it is; the guesses are "
        "printed on standard error",
    )
    verb.add_argument(
        "--from",
        dest="checkpoint",
        metavar="FOLDER",
        help="with --data: start from this checkpoint. Of a decoder and a text file, find which "
        "layers or KV groups keep full attention; train an encoder on texts with labels",
    )
    verb.add_argument(
        "--text",
        metavar="COLUMN",
        action="append",
        help="with --data: the text column; give it twice to compare two texts",
    )
    verb.add_argument(
        "--label", metavar="COLUMN", action="append", help="with --data: the label column"
    )
    verb.add_argument(
        "--kind",
        help="with --data: what to predict, 'classification', 'regression', 'labelling' (a label "
        "for each word), 'language' (the next character) or 'forecasting' (the next number); or "
        "'series', to read columns of pixels as a series",
    )
    verb.add_argument(
        "--group",
        metavar="COLUMN",
        help="with --data: rows with one value of this column are never in two splits",
    )
    verb.add_argument(
        "--split",
        metavar="COLUMN",
        help="with --data: the column that says which split a row is in (train, valid, test)",
    )
    verb.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="with --data: what a run may take on this machine, which is timed (default: 8)",
    )
    verb.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="with --data: steps of the search and of each training, instead of --minutes",
    )
    verb.add_argument(
        "--candidates",
        metavar="NAMES",
        help="with --data: 'cheap', 'long', 'all', or attentions with commas between them "
        "(default: four by length and direction)",
    )
    verb.add_argument(
        "--preset",
        default="recommended",
        help="'recommended'; 'published' for the settings of the DARTS paper; or the blocks of "
        "'gpt2', 'bert', 'llama' or 'qwen3' (default: recommended)",
    )
    _add_json(verb, "the config's values")


def _add_list(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "list",
        "list the available attentions, strategies, derivations or tasks, or the fields of a config",
    )
    verb.add_argument(
        "what", choices=("attentions", "strategies", "derivations", "tasks", "fields")
    )
    verb.add_argument("--causal", action="store_true", help="attentions that can be causal")
    verb.add_argument(
        "--bidirectional", action="store_true", help="attentions that can read in both directions"
    )
    verb.add_argument(
        "--linear", action="store_true", help="attentions whose time grows linearly with the length"
    )
    _add_json(verb, "the list")


def _add_selfcheck(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "selfcheck",
        "check that this installation finds known answers",
        "Searches three planted tasks whose best attention is known, in about a minute on two "
        "cores. Exits with 0 if every answer is found, else with 1.",
    )
    _add_json(verb)


def _add_predict(verbs: "Verbs[Parser]") -> None:
    verb = _add(verbs, "predict", "use an exported model")
    verb.add_argument("folder", help="the folder that `export` wrote, or the workdir of a run")
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", action="append", help="a text to classify; may be repeated")
    source.add_argument(
        "--pair", action="append", nargs=2, metavar=("A", "B"), help="two texts to compare"
    )
    source.add_argument(
        "--file",
        help="a table with the columns of the training data, labels left out or not; or a file with "
        "one text per line, or two separated by a tab for a model that compares texts; - for "
        "standard input",
    )
    source.add_argument(
        "--jsonl",
        metavar="FILE",
        help='a stream of JSON lines, {"text": "..."}, {"texts": ["...", "..."]} or '
        '{"tokens": [...]}, answered in the same form; - for standard input',
    )
    verb.add_argument(
        "--batch",
        type=int,
        default=64,
        help="with --jsonl: lines answered together; 1 answers each line before reading the next "
        "(default: 64)",
    )
    ranking = verb.add_mutually_exclusive_group()
    ranking.add_argument(
        "--top", type=int, metavar="N", help="also answer the N most probable labels, in order"
    )
    ranking.add_argument(
        "--probabilities", action="store_true", help="also answer the probability of every label"
    )
    verb.add_argument("--device", help="cpu, gpu or tpu (default: the fastest available)")
    _add_json(verb, "the answers")


def _add_generate(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "generate",
        "continue texts with a model of the task language, or with a checkpoint",
        "One text is printed as it is generated; several are generated together and printed one "
        "after another.",
    )
    verb.add_argument(
        "folder",
        help="the folder that `export` wrote, the workdir of a run, or a checkpoint of Hugging Face",
    )
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a text to continue; may be repeated")
    source.add_argument(
        "--file", help="a file with one text to continue per line; - for standard input"
    )
    verb.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="at most N new tokens for each text (default: as many as the model's length leaves)",
    )
    verb.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the most probable token, 1 draws from the model's probabilities, more draws "
        "from flatter ones (default: 0)",
    )
    verb.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K most probable tokens"
    )
    verb.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the fewest tokens whose probabilities sum to P",
    )
    verb.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    verb.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end where this text comes, and leave it out; may be repeated",
    )
    verb.add_argument(
        "--chat",
        action="store_true",
        help="take each text as a message and answer it, by the checkpoint's chat template",
    )
    verb.add_argument("--device", help="cpu, gpu or tpu (default: the fastest available)")
    _add_json(verb, "the texts")


def _add_inspect(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "inspect",
        "say what a checkpoint of Hugging Face is, and whether dartformer reads it",
        "Reads the config and the headers of the weights, and no weights. Exits with 1 if "
        "something in the checkpoint is refused.",
    )
    verb.add_argument("folder", help="the folder of a checkpoint, or of an export or a run")
    _add_json(verb)


def _add_push(verbs: "Verbs[Parser]") -> None:
    verb = _add(verbs, "push", "upload an exported model to the Hugging Face hub")
    verb.add_argument("folder", help="the folder that `export` wrote")
    verb.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="the name of the model on the hub"
    )
    verb.add_argument("--private", action="store_true", help="create the repository as private")
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="check the folder and print what would be uploaded; needs no network",
    )
    _add_json(verb)


def _add_doctor(verbs: "Verbs[Parser]") -> None:
    verb = _add(
        verbs,
        "doctor",
        "check versions, devices, caches, free space and extras",
        "Exits with 1 if a required package is missing.",
    )
    _add_json(verb)


def _add_completion(verbs: "Verbs[Parser]") -> None:
    verb = _add(verbs, "completion", "print a script that completes commands in your shell")
    verb.add_argument("shell", choices=("bash", "zsh", "fish"))
