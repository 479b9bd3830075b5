"""The command line of `scripts/torture`."""

import argparse
import importlib
import secrets
import sys
import time
import traceback
from types import ModuleType

from tests.torture import PARTS


def _part(name: str) -> ModuleType:
    return importlib.import_module(f"tests.torture.{name}")


def _arguments() -> argparse.Namespace:
    parts = []
    for name, minutes in PARTS.items():
        title = (_part(name).__doc__ or "").partition("\n")[0]
        parts.append(f"  {name:10} {minutes:4g} min  {title}")
    parser = argparse.ArgumentParser(
        prog="scripts/torture",
        description="Breaks things on purpose, for a long time, and checks what blobfs promises.",
        epilog="\n".join(["parts:", *parts]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part; without any: all of them")
    parser.add_argument("--minutes", type=float, help="for each part, instead of its usual time")
    parser.add_argument("--seed", type=int, help="do again what a run with this seed did")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - PARTS.keys():
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    return arguments


def _ran(name: str, seed: int, minutes: float) -> bool:
    def say(text: str) -> None:
        print(f"{name}: {text}", flush=True)

    again = f"scripts/torture {name} --minutes {minutes:g} --seed {seed}"
    say(f"{minutes:g} minutes; to do the same again: {again}")
    start = time.monotonic()
    try:
        _part(name).run(seed, minutes, say)
    except Exception:  # the other parts have their turn
        traceback.print_exc()
        say(f"FAILED after {time.monotonic() - start:.0f} s; again: {again}")
        return False
    say(f"ok, {time.monotonic() - start:.0f} s")
    return True


def main() -> int:
    arguments = _arguments()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    results = [
        _ran(name, seed, PARTS[name] if arguments.minutes is None else arguments.minutes)
        for name in arguments.names or PARTS
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
