"""Shell completion of the verbs, their flags and the mount options: static, so that a key press
does not wait for Python."""

import argparse
import shlex
from collections.abc import Sequence

from blobfs.system.commands import Command, command_of, help_of
from blobfs.system.files import File
from blobfs.system.layout import Layout
from blobfs.system.manual import Row


def completions(
    program: argparse.ArgumentParser, rows: Sequence[Row], layout: Layout
) -> list[File]:
    tree = command_of(program)
    share, mark = layout.share, layout.mark
    return [
        File(f"{share}/bash-completion/completions/blobfs", _bash(tree, rows, mark)),
        File(f"{layout.zsh}/_blobfs", _zsh(tree, rows, mark)),
        File(f"{share}/fish/vendor_completions.d/blobfs.fish", _fish(tree, rows, mark)),
    ]


def _names(rows: Sequence[Row]) -> list[str]:
    """Each option alone; those that take a value end in =."""
    return [name for shown, _, _ in rows for name in shown.split(", ")]


def _words(command: Command) -> list[str]:
    return [*(verb.words[-1] for verb in command.verbs), *command.flags]


def _pattern(command: Command) -> str:
    """For `case`, over the words typed: those of a command without verbs may have more after it."""
    words = shlex.quote(" ".join(command.words))
    return words if command.verbs else f"{words}|{words}' '*"


def _bash(tree: Command, rows: Sequence[Row], mark: str) -> str:
    cases = "\n".join(
        f"        {_pattern(at)}) words={shlex.quote(' '.join(_words(at)))} ;;"
        for at in tree.walk()
    )
    # bash breaks words at = and :, and replaces only what comes after the last of them: `cur`.
    return f"""# bash completion of blobfs. {mark}
_blobfs() {{
    local line=${{COMP_LINE:0:COMP_POINT}} cur=${{COMP_WORDS[COMP_CWORD]}} words= verbs= word before
    [[ $cur != [=:] ]] || cur=
    local typed=${{line##*[[:space:]]}}
    read -ra before <<<"${{line%"$typed"}}"
    if [[ ${{before[-1]}} == -o ]]; then
        local last=${{typed##*,}}
        if [[ $last == *=* ]]; then
            local value=${{last#*=}}
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -P "${{cur%"$value"}}" -f -- "$value")
        else
            compopt -o nospace
            words={shlex.quote(" ".join(_names(rows)))}
            mapfile -t COMPREPLY < <(compgen -P "${{cur%"$last"}}" -W "$words" -- "$last")
        fi
        return
    fi
    for word in "${{before[@]:1}}"; do
        [[ $word == -* ]] || verbs+=${{verbs:+ }}$word
    done
    case $verbs in
{cases}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}
complete -o default -F _blobfs blobfs
"""


def _zsh(tree: Command, rows: Sequence[Row], mark: str) -> str:
    cases = "\n".join(
        f"    {_pattern(command)}) candidates=({_described(command)}) ;;" for command in tree.walk()
    )
    values = " ".join(
        shlex.quote(
            f"{name.rstrip('=')}[{_plain(text)}]" + (":value:_files" if "=" in name else "")
        )
        for shown, _, text in rows
        for name in shown.split(", ")
    )
    return f"""#compdef blobfs
# {mark}
local -a candidates
if [[ $words[CURRENT-1] == -o ]]; then
    _values -s , option {values}
    return
fi
case "${{(j: :)${{(@)words[2,CURRENT-1]:#-*}}}}" in
{cases}
esac
if (( $#candidates )) && [[ $words[CURRENT] == -* || $candidates[1] != -* ]]; then
    _describe command candidates
else
    _files
fi
"""


def _described(command: Command) -> str:
    words = [f"{verb.words[-1]}:{_plain(verb.help)}" for verb in command.verbs]
    for action in command.arguments:
        text = _plain(help_of(action, command.parser))
        words += [f"{flag}:{text}" for flag in action.option_strings]
    return " ".join(map(shlex.quote, words))


def _plain(text: str) -> str:
    """Without what _values and _describe take for their own."""
    return text.translate(str.maketrans(":[]", ";()"))


def _fish(tree: Command, rows: Sequence[Row], mark: str) -> str:
    lines = [
        f"# fish completion of blobfs. {mark}",
        "function __blobfs_at",
        "    set -l words (string match -v -- '-*' (commandline -opc)[2..])",
        '    test "$words" = "$argv"',
        "end",
        "function __blobfs_in",
        "    set -l words (string match -v -- '-*' (commandline -opc)[2..])",
        "    set -l count (count $argv)",
        '    test "$words[1..$count]" = "$argv"',
        "end",
        "function __blobfs_options",
        "    set -l typed (commandline -ct)",
        "    set -l before (string replace -r '[^,]*$' '' -- $typed)",
        "    for option in " + " ".join(map(shlex.quote, _names(rows))),
        "        echo $before$option",
        "    end",
        "end",
    ]
    for command in tree.walk():
        at = shlex.quote(
            " ".join(("__blobfs_at" if command.verbs else "__blobfs_in", *command.words))
        )
        start = f"complete -c blobfs -n {at}"
        lines += [
            f"{start} -f -a {verb.words[-1]} -d {_fish_quote(verb.help)}" for verb in command.verbs
        ]
        for action in command.arguments:
            text = _fish_quote(help_of(action, command.parser))
            for flag in action.option_strings:
                kind, name = ("-l", flag[2:]) if flag.startswith("--") else ("-s", flag[1:])
                value = "" if action.nargs == 0 else " -r"
                if flag == "-o":
                    value = " -x -a '(__blobfs_options)'"
                lines.append(f"{start} {kind} {name}{value} -d {text}")
    return "\n".join(lines) + "\n"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
