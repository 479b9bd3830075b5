"""Fuzzing: every parser of bytes that blobfs did not make, given any bytes at all.

A target is `def NAME(data: bytes) -> None`. It feeds its parser, lets only that parser's
documented errors pass, and holds what it accepts to an oracle: that it round-trips, that two
readers of the same bytes agree, that a message keeps a secret.

    tests/test_fuzz.py     a short, deterministic run of each by hypothesis, and all that was found
    scripts/torture fuzz   a long run of each by atheris, guided by coverage
    targets.py             all of them, by name
    seeds.py               well-formed inputs to begin from, and inputs made to cost much
    corpus/NAME/           inputs that once found something; replayed for ever
"""
