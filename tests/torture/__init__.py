"""The long forms of the tests that break things on purpose: `scripts/torture`.

A part is a module here whose docstring begins with its help, and which has

    def run(seed: int, minutes: float, say: Callable[[str], None]) -> None

It works until the minutes are over, always for at least one round, raises AssertionError with what
is needed to reproduce, and says its figures at the end. The same seed makes the same plan.
"""

PARTS: dict[str, float] = {
    "cancellation": 3,
    "rivals": 10,
    "crash": 20,
    "fuzz": 110,
    "hosts": 20,
    "trees": 10,
    "scarce": 10,
    "faults": 60,
    "soak": 10,
}
"""The modules, and the minutes that each takes if nothing else is asked for."""
