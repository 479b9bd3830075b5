"""One target under atheris: `python -m tests.fuzz NAME [libFuzzer's arguments and directories]`.

It ends with another status than 0 at the first input that the target does not stand, which
libFuzzer keeps (`-artifact_prefix=`)."""

import sys

import atheris

atheris.enabled_hooks.add("str")
with atheris.instrument_imports(include=["blobfs", "xml", "json", "jwcrypto", "urllib"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *arguments = sys.argv[1:]
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


main()
