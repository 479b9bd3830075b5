"""An Azurite of a part's own, and a folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.azurite import Azurite


@contextmanager
def service() -> Iterator[tuple[Azurite, Path]]:
    """Both are gone afterwards; fails when plaintext or a token's signature was stored."""
    with tempfile.TemporaryDirectory(prefix="blobfs-torture-") as name:
        folder = Path(name)
        azurite = Azurite(folder / "azurite")
        try:
            yield azurite, folder
        finally:
            azurite.stop()
        assert azurite.find_leaks(azurite.signatures) == []
