"""Shell completion: scripts for bash, zsh and fish, made from the command line's own grammar."""

import argparse
from collections.abc import Iterator

from dartformer.errors import unknown

SHELLS = ("bash", "zsh", "fish")

INSTALL = {
    "bash": "dartformer completion bash > ~/.local/share/bash-completion/completions/dartformer",
    "zsh": "dartformer completion zsh > ~/.zfunc/_dartformer   # a folder of $fpath, before compinit",
    "fish": "dartformer completion fish > ~/.config/fish/completions/dartformer.fish",
}
"""Where each shell looks."""


def script(shell: str, top: argparse.ArgumentParser) -> str:
    """The completion script of the grammar `top`; raises `InputError` for another shell."""
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](list(grammar(top)))


def grammar(
    top: argparse.ArgumentParser,
) -> Iterator[tuple[str, str, list[tuple[str, str, bool]], list[str]]]:
    """For each verb: its name, its help, its options (name, help, whether a value follows), and
    words it can take."""
    for action in top._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, verb in action.choices.items():
            options: list[tuple[str, str, bool]] = []
            words: list[str] = []
            for one in verb._actions:
                for option in one.option_strings:
                    if option.startswith("--"):
                        options.append((option, one.help or "", one.nargs != 0))
                if not one.option_strings and one.choices:
                    words += map(str, one.choices)
            yield name, helps.get(name, ""), options, words


def _bash(verbs: list[tuple[str, str, list[tuple[str, str, bool]], list[str]]]) -> str:
    cases = "\n".join(
        f'    {name}) words="{" ".join([*(o for o, _, _ in options), *words])}" ;;'
        for name, _, options, words in verbs
    )
    return f"""# {INSTALL["bash"]}
_dartformer() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(name for name, *_ in verbs)}" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _dartformer dartformer
"""


def _zsh(verbs: list[tuple[str, str, list[tuple[str, str, bool]], list[str]]]) -> str:
    def quoted(text: str) -> str:
        return "".join(f"\\{c}" if c in ":[]" else "'\\''" if c == "'" else c for c in text)

    listed = "\n".join(f"    '{name}:{quoted(text)}'" for name, text, _, _ in verbs)
    cases = "\n".join(
        f"    {name}) _arguments "
        + " ".join(
            [
                *(
                    f"'{option}{'=' if value else ''}[{quoted(text)}]{':value:_files' if value else ''}'"
                    for option, text, value in options
                ),
                *([f"'2:what:({' '.join(words)})'"] if words else []),
                "'*:file:_files'",
            ]
        )
        + " ;;"
        for name, _, options, words in verbs
    )
    return f"""#compdef dartformer
# {INSTALL["zsh"]}
_dartformer() {{
  local -a verbs
  verbs=(
{listed}
  )
  if (( CURRENT == 2 )); then
    _describe 'verb' verbs
    return
  fi
  case "$words[2]" in
{cases}
  esac
}}
_dartformer "$@"
"""


def _fish(verbs: list[tuple[str, str, list[tuple[str, str, bool]], list[str]]]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [f"# {INSTALL['fish']}"]
    for name, text, options, words in verbs:
        lines.append(
            f"complete -c dartformer -n __fish_use_subcommand -f -a {name} -d {quoted(text)}"
        )
        on = f"complete -c dartformer -n '__fish_seen_subcommand_from {name}'"
        lines += [
            f"{on} -l {option[2:]}{' -r' if value else ''} -d {quoted(about)}"
            for option, about, value in options
        ]
        lines += [f"{on} -f -a {quoted(' '.join(words))}"] if words else []
    return "\n".join(lines) + "\n"
