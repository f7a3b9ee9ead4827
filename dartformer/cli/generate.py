"""The verb `generate`: continue texts, and print them as they come."""

import argparse
import sys
from pathlib import Path

from dartformer.cli.output import print_json
from dartformer.cli.predict import exported, lines_of
from dartformer.data.rows import is_blank
from dartformer.errors import InputError
from dartformer.export.generate import Piece, Sampling, Writer, open_model
from dartformer.machine.printable import printable


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Continue the texts of the command line or of a file."""
    # Before the model is loaded, which may take long.
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    prompts = _prompts(arguments)
    model = open_model(exported(Path(arguments.folder)), arguments.device)
    limits = (arguments.stop, arguments.max_tokens)
    writer = Writer(model, prompts, *limits, chat=arguments.chat)
    shown = prompts
    if arguments.chat:
        shown = [""] * len(prompts)  # an answer stands on its own
    screen = _Screen(shown, quiet=arguments.json)
    for piece in writer.pieces(sampling):
        screen.add(piece)
    if arguments.json:
        print_json([continuation._asdict() for continuation in writer.continuations()])
    return 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """The texts to continue."""
    if arguments.prompt is not None:
        return list(arguments.prompt)
    prompts = []
    for line in lines_of(arguments.file):
        if not is_blank(line):
            prompts.append(line)
    if not prompts:
        raise InputError(f"{arguments.file} has no text to continue.")
    return prompts


class _Screen:
    """Standard output: the first row that is not finished as it comes, those behind it later."""

    def __init__(self, prompts: list[str], *, quiet: bool) -> None:
        self.prompts = prompts
        self.quiet = quiet
        self.waiting = [""] * len(prompts)
        self.done = [False] * len(prompts)
        self.row = 0
        self._begin()

    def add(self, piece: Piece) -> None:
        """Print what can be printed now that a row has got more text."""
        self.waiting[piece.row] += piece.text
        self.done[piece.row] = bool(piece.finish)
        while self.row < len(self.prompts):
            self._write(self.waiting[self.row])
            self.waiting[self.row] = ""
            if not self.done[self.row]:
                return
            self._write("\n")
            self.row += 1
            self._begin()

    def _begin(self) -> None:
        if self.row < len(self.prompts):
            self._write(self.prompts[self.row])

    def _write(self, text: str) -> None:
        if text and not self.quiet:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
