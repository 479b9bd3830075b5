"""What can go wrong, and the one table that turns it into an errno.

    BlobfsError
    ├── UsageError                bad options, token or key file: said before anything is mounted
    │   ├── OptionError
    │   ├── SasError
    │   │   └── SasTimeError      expired or not yet valid, by the clock that was asked
    │   ├── KeyFileError
    │   └── NotMounted            there is no mount of blobfs at the path given
    ├── RecoveryError             a recovery file cannot be stored, and is left as it is
    ├── NoStatus                  the daemon of a mount cannot be asked
    ├── MountRefused              the kernel or fusermount3 does not let us mount
    ├── PosixError                an operation that POSIX refuses; carries its errno
    ├── ServiceError              what the Blob service (or the way to it) answered
    │   ├── NotFound
    │   ├── AlreadyExists
    │   ├── ConditionFailed       the blob is no longer the version that we know
    │   ├── BlocksGone            staged blocks are no longer there to be committed
    │   ├── Denied                the token does not permit this
    │   │   └── TokenRefused      expired, not yet valid, revoked or wrongly signed
    │   ├── Leased
    │   ├── HasSnapshots          the service deletes no blob before its snapshots
    │   ├── TooBig
    │   ├── Archived
    │   ├── Unavailable           network, 5xx or deadline, after retries
    │   │   ├── KeyUnavailable    a key provider gave no answer, or none of use; may be asked again
    │   │   └── Untrusted         who answers is not shown to be the service: it was asked nothing
    │   └── Rejected              the service calls our request malformed
    └── ContentError              what is stored is not what may be served
        ├── KeyUnknown            nobody has a key of the blob's key id
        ├── KeyRefused            the key provider does not permit the use of its key
        ├── NotEncrypted          a plaintext blob under require_encryption
        ├── ProtocolRefused       below min_protocol, or one that we do not know
        └── Corrupt               fails authentication or is malformed
            ├── WrongKey          the key of that id does not unwrap the CEK
            └── Truncated         the length does not fit the format or the seal

Messages never contain a SAS signature, a key or file contents.
"""

import errno
from collections.abc import Iterator


class BlobfsError(Exception):
    """Base of every error that blobfs raises on purpose; never raised itself."""


class UsageError(BlobfsError):
    """Something the user gave is wrong; the message says what, and what to do, in one line."""


class OptionError(UsageError):
    """A mount option is unknown, malformed or contradicts another."""


class SasError(UsageError):
    """The SAS token cannot be used for this mount."""


class SasTimeError(SasError):
    """The SAS token has expired or is not valid yet, by the clock that was asked."""


class KeyFileError(UsageError):
    """The key file is missing, readable by others, malformed or lacks the key asked for."""


class NotMounted(UsageError):
    """There is no mount of blobfs at the path given."""


class NoStatus(BlobfsError):
    """The daemon of a mount gives no answer, or not to this user."""


class MountRefused(BlobfsError):
    """The kernel or fusermount3 does not let us mount."""


class RecoveryError(BlobfsError):
    """A recovery file is incomplete, damaged, in use, or cannot be stored as it is."""


class PosixError(BlobfsError):
    """An operation that the file system refuses; `errno` is what the caller sees."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or errno.errorcode.get(code, str(code)))
        self.errno = code


class ServiceError(BlobfsError):
    """An answer of the Blob service or a key provider, or none.

    `request_id` is what Azure support asks for.
    """

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class NotFound(ServiceError):
    pass


class AlreadyExists(ServiceError):
    pass


class ConditionFailed(ServiceError):
    pass


class BlocksGone(ServiceError):
    pass


class Denied(ServiceError):
    pass


class TokenRefused(Denied):
    pass


class Leased(ServiceError):
    pass


class HasSnapshots(ServiceError):
    pass


class TooBig(ServiceError):
    pass


class Archived(ServiceError):
    pass


class Unavailable(ServiceError):
    pass


class KeyUnavailable(Unavailable):
    pass


class Untrusted(Unavailable):
    pass


class Rejected(ServiceError):
    pass


class ContentError(BlobfsError):
    """The blob's content cannot be served."""


class KeyUnknown(ContentError):
    pass


class KeyRefused(ContentError):
    pass


class NotEncrypted(ContentError):
    pass


class ProtocolRefused(ContentError):
    pass


class Corrupt(ContentError):
    pass


class WrongKey(Corrupt):
    pass


class Truncated(Corrupt):
    pass


ERRNO: dict[type[BlobfsError], int] = {
    UsageError: errno.EINVAL,
    NoStatus: errno.ECONNREFUSED,
    MountRefused: errno.EPERM,
    RecoveryError: errno.EIO,
    NotFound: errno.ENOENT,
    AlreadyExists: errno.EEXIST,
    ConditionFailed: errno.ESTALE,
    BlocksGone: errno.EIO,
    Denied: errno.EACCES,
    Leased: errno.EBUSY,
    HasSnapshots: errno.EBUSY,
    TooBig: errno.EFBIG,
    Archived: errno.EIO,
    Unavailable: errno.EIO,
    Rejected: errno.EIO,
    KeyUnknown: errno.ENOKEY,
    KeyRefused: errno.EACCES,
    NotEncrypted: errno.EACCES,
    ProtocolRefused: errno.EACCES,
    Corrupt: errno.EIO,
}

# When several things failed at once the caller gets one errno: the gravest first.
_GRAVITY: tuple[type[BaseException], ...] = (
    ContentError,
    ConditionFailed,
    Denied,
    PosixError,
    ServiceError,
)


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def root_cause(exc: BaseException) -> BaseException:
    """The one exception that stands for `exc`, which may be a (nested) exception group.

    An exception that blobfs does not know outranks all others, since it is a bug.
    """
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = list(_leaves(exc))
    for leaf in leaves:
        if not isinstance(leaf, BlobfsError):
            return leaf
    for kind in _GRAVITY:
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def errno_of(exc: BaseException) -> int:
    """The errno for `exc`: the nearest class in `ERRNO`; EIO for what is not ours."""
    if isinstance(exc, PosixError):
        return exc.errno
    for cls in type(exc).__mro__:
        code = ERRNO.get(cls)
        if code is not None:
            return code
    return errno.EIO


def errno_name(code: int) -> str:
    """As the README spells it: Linux has one number for ENOTSUP and EOPNOTSUPP."""
    return "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, str(code))
