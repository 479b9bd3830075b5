"""POSIX by operation and errno.

Every test runs on a directory of the machine's own file system first (`local`), so that a wrong
expectation is seen as such, and then on a mount. Tests run as root, and act as two users without
privileges where permissions matter.
"""

import pytest

pytest.register_assert_rewrite("tests.conformance.world")
