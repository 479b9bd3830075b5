"""One file exercised at random, and the same done to bytes in memory: all that is read must agree.

    python -m tests.exerciser FILE SEED OPERATIONS LIMIT

FILE is made, grows up to LIMIT bytes, and is left behind. What happens depends on these arguments
alone. Each operation is printed before it is done, so that the last line is the one that failed,
also when that was a SIGBUS; the last line of a run without a failure is the content's SHA-256.
"""

import ctypes
import hashlib
import mmap
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tests.mounts import PLAINTEXT_MARKER

BOUNDARIES = (mmap.PAGESIZE, 64 * 1024, 256 * 1024, 1024 * 1024, 8 * 1024 * 1024)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MS_SYNC = 4


class Mapping:
    """A shared mapping, without the copy of the descriptor that `mmap.mmap` keeps and closes, and
    as long as one likes: only pages within the file may be touched."""

    def __init__(self, fd: int, length: int) -> None:
        flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
        self._length = length
        self._address = _libc.mmap(None, length, *flags, fd, 0)
        if self._address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")

    def read(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self._address + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self._address + offset, data, len(data))

    def sync(self) -> None:
        if _libc.msync(self._address, self._length, _MS_SYNC) != 0:
            raise OSError(ctypes.get_errno(), "msync")

    def close(self) -> None:
        if _libc.munmap(self._address, self._length) != 0:
            raise OSError(ctypes.get_errno(), "munmap")


class Exerciser:
    def __init__(self, path: Path, seed: int, limit: int) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.limit = limit
        self.expected = bytearray()
        # What stores the content is rarer than the rest: most changes shall meet a draft.
        self.weights: dict[Callable[[], None], float] = {
            self.read: 20,
            self.read_by_mapping: 12,
            self.read_past_the_cache: 3,
            self.write: 22,
            self.write_by_mapping: 12,
            self.write_past_the_cache: 3,
            self.append: 5,
            self.truncate: 5,
            self.drop_cache: 5,
            self.touch: 1,
            self.check: 1,
            self.fsync: 0.4,
            self.sync_mapping: 0.3,
            self.reopen: 0.6,
            self.read_by_another: 0.2,
            self.truncate_by_name: 0.2,
            self.rename: 0.2,
            self.rewrite: 0.6,
        }
        path.touch()
        self._open()

    def run(self, operations: int) -> None:
        chosen = self.random.choices([*self.weights], [*self.weights.values()], k=operations)
        for number, operation in enumerate(chosen, 1):
            print(f"\n{number} {operation.__name__}", end="", flush=True)
            operation()
            size = os.fstat(self.fd).st_size
            assert size == len(self.expected), f"fstat: {size} instead of {len(self.expected)}"
        print("\ncheck", end="", flush=True)
        self.check()
        self._close()
        assert self.path.read_bytes() == self.expected, "after the last close"
        print(f"\n{hashlib.sha256(self.expected).hexdigest()}")

    # --- the file ---------------------------------------------------------------------------

    def _open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR)
        self.appender = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.mapping = Mapping(self.fd, self.limit)

    def _close(self) -> None:
        for fd in (self.fd, self.appender, self.direct):
            os.close(fd)
        self.mapping.close()

    def _store(self, offset: int, data: bytes) -> None:
        if offset > len(self.expected):
            self.expected.extend(bytes(offset - len(self.expected)))
        self.expected[offset : offset + len(data)] = data

    def _cut_or_grow(self, size: int) -> None:
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    # --- what to do -------------------------------------------------------------------------

    def _tell(self, *arguments: int) -> None:
        print("", *arguments, end="", flush=True)

    def _position(self, end: int) -> int:
        """0 to `end`: anywhere, or close to where pages, regions and blocks meet."""
        if self.random.random() < 0.4:
            boundary = self.random.choice(BOUNDARIES)
            near = boundary * self.random.randint(0, end // boundary) + self.random.randint(-2, 2)
            return min(max(near, 0), end)
        return self.random.randint(0, end)

    def _range(self, end: int) -> tuple[int, int]:
        """An offset and a size that is not 0, within 0 to `end`, which is not 0 either."""
        offset = self._position(end - 1)
        largest = self.random.choice([100, 5000, 70_000, 300_000])
        return offset, self.random.randint(1, min(largest, end - offset))

    def _data(self, size: int) -> bytes:
        return (PLAINTEXT_MARKER + self.random.randbytes(size))[:size]

    # --- comparing --------------------------------------------------------------------------

    def _compare(self, offset: int, size: int, found: bytes) -> None:
        expected = self.expected[offset : offset + size]
        if found == expected:
            return
        problem = f"{len(found)} bytes at {offset} instead of {len(expected)}"
        wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b]
        if wrong:
            first, last = offset + wrong[0], offset + wrong[-1]
            zeros = all(found[i] == 0 for i in wrong)
            problem += f"; {len(wrong)} wrong ones between {first} and {last}, all zeros: {zeros}"
        raise AssertionError(problem)

    # --- operations: each does one thing to both ---------------------------------------------

    def read(self) -> None:
        offset = self._position(len(self.expected) + 5000)
        size = self.random.choice([1, 100, 4096, 70_000, 300_000])
        self._tell(offset, size)
        self._compare(offset, size, os.pread(self.fd, size, offset))

    def read_by_mapping(self) -> None:
        if not self.expected:
            return
        offset, size = self._range(len(self.expected))
        self._tell(offset, size)
        self._compare(offset, size, self.mapping.read(offset, size))

    def read_past_the_cache(self) -> None:
        offset = self._position(len(self.expected))
        size = self.random.choice([1, 512, 4096, 300_000])
        self._tell(offset, size)
        self._compare(offset, size, os.pread(self.direct, size, offset))

    def read_by_another(self) -> None:
        """Whose close stores the content."""
        with self.path.open("rb") as file:
            self._compare(0, len(self.expected), file.read())

    def check(self) -> None:
        """All of it, as blobfs has it."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._compare(0, len(self.expected), os.pread(self.fd, self.limit + 1, 0))

    def _write(self, fd: int) -> None:
        offset, size = self._range(self.limit)
        data = self._data(size)
        self._tell(offset, size)
        written = os.pwrite(fd, data, offset)
        assert written == size, f"{written} of {size} bytes written"
        self._store(offset, data)

    def write(self) -> None:
        self._write(self.fd)

    def write_past_the_cache(self) -> None:
        self._write(self.direct)

    def write_by_mapping(self) -> None:
        if not self.expected:
            return
        offset, size = self._range(len(self.expected))
        data = self._data(size)
        self._tell(offset, size)
        self.mapping.write(offset, data)
        self._store(offset, data)

    def append(self) -> None:
        room = self.limit - len(self.expected)
        data = self._data(min(room, self.random.choice([1, 100, 5000, 70_000])))
        self._tell(len(data))
        written = os.write(self.appender, data)
        assert written == len(data), f"{written} of {len(data)} bytes appended"
        self._store(len(self.expected), data)

    def rewrite(self) -> None:
        """From front to back, as most files are written: then blocks leave before the close, and
        a write to one of them after all makes them void."""
        size = max(self._position(self.limit), self._position(self.limit))
        self._tell(size)
        os.ftruncate(self.fd, 0)
        self.expected.clear()
        while len(self.expected) < size:
            data = self._data(min(128 * 1024, size - len(self.expected)))
            os.pwrite(self.fd, data, len(self.expected))
            self.expected.extend(data)
        if self.random.random() < 0.5:
            self.write()
        self.reopen()
        self.check()

    def truncate(self) -> None:
        size = self._position(self.limit)
        self._tell(size)
        os.ftruncate(self.fd, size)
        self._cut_or_grow(size)

    def truncate_by_name(self) -> None:
        size = self._position(self.limit)
        self._tell(size)
        os.truncate(self.path, size)
        self._cut_or_grow(size)

    def drop_cache(self) -> None:
        """Begin to write what a mapping changed, and forget what the kernel has besides."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def touch(self) -> None:
        os.utime(self.fd, ns=(self.random.randint(0, 10**18),) * 2)

    def fsync(self) -> None:
        os.fsync(self.fd)

    def sync_mapping(self) -> None:
        self.mapping.sync()

    def reopen(self) -> None:
        """With the mapping in use, now and then, when all descriptors are closed."""
        fds = [self.fd, self.appender, self.direct]
        self.random.shuffle(fds)
        for fd in fds:
            os.close(fd)
        if self.random.random() < 0.3:
            self.write_by_mapping()
        self.mapping.close()
        self._open()

    def rename(self) -> None:
        """Away and back."""
        other = self.path.with_name(f"{self.path.name}-renamed")
        self.path.rename(other)
        self._compare(0, len(self.expected), os.pread(self.fd, self.limit + 1, 0))
        other.rename(self.path)


def main(path: str, seed: str, operations: str, limit: str) -> None:
    Exerciser(Path(path), int(seed), int(limit)).run(int(operations))


if __name__ == "__main__":
    main(*sys.argv[1:])
