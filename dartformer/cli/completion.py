"""The verb completion: scripts for bash, zsh and fish, generated from the grammar."""

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dartformer import strategies, tasks
from dartformer.cli.grammar import Verbs, parser
from dartformer.config import defaults, reference
from dartformer.derivations import DERIVATIONS
from dartformer.errors import unknown

INSTALL = {
    "bash": "dartformer completion bash > ~/.local/share/bash-completion/completions/dartformer",
    "zsh": "dartformer completion zsh > ~/.zfunc/_dartformer   # a folder of $fpath, before compinit",
    "fish": "dartformer completion fish > ~/.config/fish/completions/dartformer.fish",
}
"""For each shell, the command that puts the script where the shell looks for it."""


class Option(NamedTuple):
    """An option of a verb: its name with dashes, its help, and whether a value follows."""

    name: str
    help: str
    takes_value: bool


class Setting(NamedTuple):
    """A field of the config as a flag: with its meaning, and the names that are its values."""

    flag: str
    help: str
    names: tuple[str, ...]


class Verb(NamedTuple):
    """A verb with its options and the words its positional arguments can be."""

    name: str
    help: str
    options: list[Option]
    words: list[str]


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Print the script for a shell."""
    print(script(arguments.shell), end="")
    return 0


def script(shell: str) -> str:
    """The completion script for a shell; raises `InputError` for an unknown one."""
    if shell not in SCRIPTS:
        raise unknown("shell", shell, SCRIPTS)
    return SCRIPTS[shell](list(grammar()), list(settings()))


def settings() -> Iterator[Setting]:
    """Every field of a config, which the verbs that read one take as flags."""
    names = {
        "search.strategy.name": strategies.names(),
        "derive.rule": list(DERIVATIONS),
        "task.name": tasks.names(),
    }
    for field in reference.fields(defaults()):
        values = tuple(names.get(field.name, ()))
        yield Setting(f"--config.{field.name}", field.sentence, values)


def reads_config(verb: Verb) -> bool:
    """Whether a verb takes fields of the config as flags."""
    return any(option.name == "--config" for option in verb.options)


def grammar() -> Iterator[Verb]:
    """Every verb of the command line."""
    # argparse has no public way to list what was added to a parser.
    for action in parser()._actions:
        if isinstance(action, Verbs):
            for choice in action._choices_actions:
                yield _verb(choice.dest, choice.help or "", action.choices[choice.dest])


def _verb(name: str, summary: str, verb: argparse.ArgumentParser) -> Verb:
    options = []
    words: list[str] = []
    for action in verb._actions:
        for option in action.option_strings:
            if option.startswith("--"):
                options.append(Option(option, action.help or "", action.nargs != 0))
        if not action.option_strings and action.choices:
            words += map(str, action.choices)
    return Verb(name, summary, options, words)


def _bash(verbs: Sequence[Verb], settings: Sequence[Setting]) -> str:
    fields = " ".join(f"{setting.flag}=" for setting in settings)
    of_fields = []
    for setting in settings:
        if setting.names:
            of_fields.append(f'    {setting.flag}) words="{" ".join(setting.names)}" ;;')
    values = "\n".join(of_fields)
    names = []
    cases = []
    for verb in verbs:
        names.append(verb.name)
        words = []
        for option in verb.options:
            words.append(option.name)
        if reads_config(verb):
            words.append("$fields")
        completions = " ".join([*words, *verb.words])
        cases.append(f'    {verb.name}) words="{completions}" ;;')
    verb_names = " ".join(names)
    lines = "\n".join(cases)
    return f"""# {INSTALL["bash"]}
_dartformer() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words field=""
  local fields="{fields}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verb_names}" -- "$current"))
    return
  fi
  # The sign = is a word of its own.
  if [ "$current" = "=" ]; then
    field="${{COMP_WORDS[COMP_CWORD-1]}}" current=""
  elif [ "${{COMP_WORDS[COMP_CWORD-1]}}" = "=" ]; then
    field="${{COMP_WORDS[COMP_CWORD-2]}}"
  fi
  case "$field" in
{values}
    "") case "${{COMP_WORDS[1]}}" in
{lines}
    *) words="" ;;
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  case "${{COMPREPLY[0]}}" in
    *=) compopt -o nospace 2>/dev/null ;;
  esac
}}
complete -o default -F _dartformer dartformer
"""


def _zsh(verbs: Sequence[Verb], settings: Sequence[Setting]) -> str:
    fields = []
    for setting in settings:
        values = "_files"
        if setting.names:
            values = f"({' '.join(setting.names)})"
        about = _zsh_quoted(setting.help)
        fields.append(f"    '{setting.flag}=[{about}]:value:{values}'")
    all_fields = "\n".join(fields)
    descriptions = []
    cases = []
    for verb in verbs:
        descriptions.append(f"    '{verb.name}:{_zsh_quoted(verb.help)}'")
        arguments = " ".join(_zsh_arguments(verb))
        if reads_config(verb):
            arguments = f"$fields {arguments}"
        cases.append(f"    {verb.name}) _arguments {arguments} ;;")
    listed = "\n".join(descriptions)
    lines = "\n".join(cases)
    return f"""#compdef dartformer
# {INSTALL["zsh"]}
_dartformer() {{
  local -a verbs fields
  verbs=(
{listed}
  )
  fields=(
{all_fields}
  )
  if (( CURRENT == 2 )); then
    _describe 'verb' verbs
    return
  fi
  case "$words[2]" in
{lines}
  esac
}}
_dartformer "$@"
"""


def _zsh_arguments(verb: Verb) -> Iterator[str]:
    """The specifications of zsh's `_arguments`: options, then words, then files."""
    for option in verb.options:
        about = _zsh_quoted(option.help)
        if option.takes_value:
            yield f"'{option.name}=[{about}]:value:_files'"
        else:
            yield f"'{option.name}[{about}]'"
    if verb.words:
        yield f"'2:what:({' '.join(verb.words)})'"
    yield "'*:file:_files'"


def _zsh_quoted(text: str) -> str:
    """The text inside single quotes, where `_arguments` gives colons and brackets a meaning."""
    # The backslash for `_arguments`, then the quote for the shell itself.
    for sign in ":[]":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("'", "'\\''")


def _fish(verbs: Sequence[Verb], settings: Sequence[Setting]) -> str:
    lines = [f"# {INSTALL['fish']}"]
    with_config = " ".join(verb.name for verb in verbs if reads_config(verb))
    on = f"complete -c dartformer -n '__fish_seen_subcommand_from {with_config}'"
    for setting in settings:
        values = ""
        if setting.names:
            values = f" -f -a {_fish_quoted(' '.join(setting.names))}"
        about = _fish_quoted(setting.help)
        lines.append(f"{on} -l {setting.flag[2:]} -r{values} -d {about}")
    for verb in verbs:
        lines.append(
            f"complete -c dartformer -n __fish_use_subcommand -f -a {verb.name} "
            f"-d {_fish_quoted(verb.help)}"
        )
        on = f"complete -c dartformer -n '__fish_seen_subcommand_from {verb.name}'"
        for option in verb.options:
            value = ""
            if option.takes_value:
                value = " -r"  # a value must follow
            lines.append(f"{on} -l {option.name[2:]}{value} -d {_fish_quoted(option.help)}")
        if verb.words:
            lines.append(f"{on} -f -a {_fish_quoted(' '.join(verb.words))}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    # The backslash first, or it would escape the quotes' own.
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
