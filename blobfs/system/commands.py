"""An argparse parser taken apart, for what is generated from it."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One command or group of them. `words` are those after the program's name."""

    words: tuple[str, ...]
    help: str
    parser: argparse.ArgumentParser
    verbs: tuple["Command", ...]

    @property
    def arguments(self) -> list[argparse.Action]:
        """Its positional arguments and options, without the verbs."""
        return [
            action
            for action in self.parser._actions
            if not isinstance(action, argparse._SubParsersAction)
        ]

    @property
    def flags(self) -> list[str]:
        return [flag for action in self.arguments for flag in action.option_strings]

    def walk(self) -> Iterator["Command"]:
        """This command and all below it."""
        yield self
        for verb in self.verbs:
            yield from verb.walk()


def command_of(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = (), help: str = ""
) -> Command:
    verbs = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            verbs += [
                command_of(below, (*words, name), texts.get(name, ""))
                for name, below in action.choices.items()
            ]
    return Command(words, help, parser, tuple(verbs))


def metavar(action: argparse.Action) -> str:
    """What stands for an argument's value; "" for a flag."""
    if action.nargs == 0:
        return ""
    shown = action.metavar or action.dest.upper()
    return shown if isinstance(shown, str) else " ".join(shown)


def help_of(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Its help with %(default)s and the like filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""
