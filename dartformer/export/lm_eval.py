"""lm-evaluation-harness on models of this package, with the extra `lm-eval`.

    python -m dartformer.export.lm_eval run --model dartformer --model_args folder=FOLDER --tasks NAMES

FOLDER is a checkpoint of Hugging Face, what `df.save_pretrained` wrote, or an export of the task
language. All else is the harness's own command line (Gao et al., doi:10.5281/zenodo.10256836)."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dartformer.errors import InputError
from dartformer.export.generate import Sampling, Source, Writer, open_model
from dartformer.export.likelihood import Pair, Scorer
from dartformer.machine.printable import printable
from dartformer.pretrained.texts import Texts

NAME = "dartformer"

NEW_TOKENS = 256
"""Tokens that are generated where a task does not say how many."""

BATCH = 8
"""Rows computed at once, where the harness says "auto"."""


class Harness:
    """What the harness asks of a model.

    Args:
      folder: see the module.
      batch_size: rows computed at once.
      max_length: the longest input in tokens; 0 for all that the model takes.
      device: cpu, gpu or tpu; by default the fastest available, and so for the harness's own
        default, "cuda:0".
      max_batch_size: is not used: no batch size is searched.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int | str = 1,
        max_length: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if device is not None and device.startswith("cuda"):
            device = None
        self.folder, self.model = folder, open_model(folder, device)
        source = Source.of(self.model)
        rows = BATCH
        if str(batch_size).isdigit():
            rows = int(batch_size)
        self.scorer = Scorer(source, rows, max_length)
        self.texts = source.task

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and would it be generated?"""
        pairs = []
        for request in requests:
            pairs.append(self._pair(*request.args))
        return [(scored.log_probability, scored.greedy) for scored in self.scorer(pairs)]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text, in windows that do not overlap."""
        pairs, texts = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = _windows(self._whole(text), self.scorer.length)
            pairs += windows
            texts += [number] * len(windows)
        totals = [0.0] * len(requests)
        for number, scored in zip(texts, self.scorer(pairs), strict=True):
            totals[number] += scored.log_probability
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each text up to one of its stop texts."""
        texts = []
        for request in requests:
            context, options = request.args
            texts.append(self._generated(context, options))
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation by the checkpoint's chat template."""
        if not isinstance(self.texts, Texts):
            raise InputError("chat needs a checkpoint with a chat template. Leave it out.")
        return self.texts.conversation(chat_history, answer=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.folder

    def _pair(self, context: str, continuation: str) -> Pair:
        """The tokens of a request, split where the context ends."""
        if not context.strip():
            ids = self._whole(context + continuation)
            return Pair(ids[:1], ids[1:])
        # Spaces belong to the word behind them, as tokenizers have it.
        stripped = context.rstrip()
        whole = self.texts.prompt(context + continuation)
        before = self.texts.prompt(stripped)
        # The last token may hold the end of the context and the whole continuation.
        split = min(len(before), len(whole) - 1)
        return Pair(whole[:split], whole[split:])

    def _whole(self, text: str) -> list[int]:
        """The tokens of a text after the one that begins texts, where the model has one."""
        ids = list(self.texts.prompt(text))
        start = None
        if isinstance(self.texts, Texts):
            start = self.texts.start
        if start is not None and ids[:1] != [start]:
            ids.insert(0, start)
        return ids

    def _generated(self, context: str, options: Mapping[str, Any]) -> str:
        """The continuation of a text, by the options of a task."""
        count = NEW_TOKENS
        for name in ("max_completion_tokens", "max_tokens", "max_new_tokens", "max_gen_toks"):
            count = int(options.get(name) or count)
        length = self.scorer.length
        count = min(count, length - 1)
        ids = self.texts.prompt(context)
        if len(ids) > length - count:
            # As the harness does it: the end of a long text matters most.
            context = self.texts.decode(ids[-(length - count) :])
        stops = options.get("until") or []
        if isinstance(stops, str):
            stops = [stops]
        temperature = float(options.get("temperature") or 0.0)
        if options.get("do_sample") is False:
            temperature = 0.0
        sampling = Sampling(
            temperature, int(options.get("top_k") or 0), float(options.get("top_p") or 1.0)
        )
        # Others, such as the text of the end token, cannot come, and are cut below all the same.
        spelled = [stop for stop in stops if self.texts.decode(self.texts.prompt(stop)) == stop]
        writer = Writer(self.model, [context], spelled, count)
        for _ in writer.pieces(sampling):
            pass
        text = writer.continuations()[0].text
        for stop in filter(None, stops):
            text = text.split(stop)[0]
        return text


def _windows(ids: Sequence[int], length: int) -> list[Pair]:
    """A text in parts: each token is scored once, after as many others as the model takes."""
    pairs = []
    for begin in range(1, len(ids), length):
        end = min(begin + length, len(ids))
        # The last part is short, so that more of what comes before it can be read.
        context = ids[max(end - 1 - length, 0) : begin]
        pairs.append(Pair(context, ids[begin:end]))
    return pairs


def register() -> type:
    """Make the model known to the harness as "dartformer"; `InputError` without the extra."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise InputError(
            "lm-evaluation-harness is not installed. Install it: pip install 'dartformer[lm-eval]'."
        ) from None
    model: type = register_model(NAME)(type("DartformerLM", (Harness, LM), {}))
    return model


def main() -> int:
    """The harness's own command line, which knows models of this package, too."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except InputError as error:
        print(printable(f"dartformer: error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
