"""The texts of a checkpoint: its tokenizer, the tokens that end a text, and its chat template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dartformer.errors import InputError, brief
from dartformer.machine.workdir import read_json, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"

TEMPLATE = "chat_template.jinja"


def opened(folder: Path) -> "Tokenizer":
    """The tokenizer in a folder, as it stands; `InputError` where there is none."""
    # Here, because models of bytes and characters generate without this package.
    from tokenizers import Tokenizer

    file = folder / TOKENIZER
    if not file.is_file():
        raise InputError(
            f"{folder} has no {TOKENIZER}, which reads texts. Copy it from where the weights came "
            f"from."
        )
    try:
        return Tokenizer.from_file(str(file))
    # The package raises this type for whatever is wrong with a file.
    except Exception as error:
        raise InputError(f"{file} is damaged: {error}.") from None


@dataclass(frozen=True)
class Texts:
    """Texts to and from token ids, as `dartformer.generate` needs them.

    Attributes:
      folder: of the checkpoint.
    """

    folder: Path

    special = ()
    """No token is forbidden: the checkpoint decides."""

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, which cuts and fills nothing."""
        tokenizer = opened(self.folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text, with those that the tokenizer puts around it."""
        return list(self.tokenizer.encode(text).ids)

    def chat(self, text: str) -> list[int]:
        """Token ids of a conversation that a user begins with a text, up to the answer."""
        # The template has written the special tokens.
        return list(self.tokenizer.encode(self.rendered(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(list(map(int, ids)))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text: `eos_token_id`, of `generation_config.json` if it is there."""
        for name in ("generation_config.json", "config.json"):
            ids = _object(self.folder / name).get("eos_token_id")
            if ids is None:
                continue
            if not isinstance(ids, list):
                ids = [ids]
            if not all(type(token) is int for token in ids):
                raise InputError(
                    f"{self.folder / name}: eos_token_id must be whole numbers, got {brief(ids)}."
                )
            return tuple(ids)
        return ()

    @cached_property
    def start(self) -> int | None:
        """The token that begins a text, or the one that ends it where there is no such token."""
        settings = _object(self.folder / "tokenizer_config.json")
        for name in ("bos_token", "eos_token"):
            token = self.tokenizer.token_to_id(_content(settings.get(name)))
            if token is not None:
                return token
        token_id = _object(self.folder / "config.json").get("bos_token_id")
        if isinstance(token_id, int):
            return token_id
        return next(iter(self.ends), None)

    def rendered(self, text: str) -> str:
        """The chat template with one message of a user."""
        return self.conversation([{"role": "user", "content": text}])

    def conversation(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The chat template with messages, and with `answer` the beginning of the next one."""
        template, settings = self._template()
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise InputError(
                "chat templates need jinja2. Install it: pip install 'dartformer[chat]'."
            ) from None

        def refuse(message: str) -> None:
            raise TemplateError(message)

        # In a sandbox: a template can read what it is given, and nothing else.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = json.dumps
        tokens = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token")}
        try:
            return environment.from_string(template).render(
                messages=list(messages), add_generation_prompt=answer, **tokens
            )
        # A template may go wrong in any way.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the chat template of {self.folder} fails: {reason}.") from None

    def _template(self) -> tuple[str, dict[str, object]]:
        """The chat template and the settings of the tokenizer."""
        settings = _object(self.folder / "tokenizer_config.json")
        template = settings.get("chat_template")
        if (self.folder / TEMPLATE).is_file():
            template = read_text(self.folder / TEMPLATE)
        if not isinstance(template, str):
            raise InputError(f"{self.folder} has no chat template. Give the whole prompt instead.")
        return template, settings


def _object(file: Path) -> dict[str, object]:
    """The object in a JSON file; empty where there is no file."""
    if not file.is_file():
        return {}
    values = read_json(file)
    if not isinstance(values, dict):
        raise InputError(f"{file} must be an object.")
    return values


def _content(token: object) -> str:
    """The text of a special token, which is one, or an object with one."""
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        return ""
    return token
