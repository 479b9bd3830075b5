"""The contract of a key provider."""

from typing import Protocol, runtime_checkable

from blobfs.envelope import WrappedKey


@runtime_checkable
class KeyProvider(Protocol):
    """Wraps and unwraps payloads: the content keys of files, of 32 or 40 bytes, and secret.

    A provider of a package is an object of this shape, which the factory behind an entry point of
    the group `blobfs.key_providers` returns; the factory is called `factory(argument, key_id)`,
    both of them str, "" where the options give none, before there is an event loop. The key id is
    what the options name to wrap, and may be another provider's.

    Methods run under trio, several at once, and must not block it (`trio.to_thread`,
    `trio.run_process`). They are called under a deadline and may be cancelled at every await: then
    nothing may be left running without a bound. They may be called again after any failure.

    They raise, from `blobfs.errors`, with one line for the user and never a key in it:
    `KeyUnknown` when there is no key of that id, `WrongKey` when it does not unwrap this,
    `KeyRefused` when its use is not permitted, `KeyUnavailable` when it may be asked again later.
    Anything else is taken for a defect of the provider, and only its type is shown.
    """

    @property
    def name(self) -> str:
        """What messages call it: the option that names it, say."""

    @property
    def key_id(self) -> str | None:
        """The id of the key that `wrap` uses; None while that is not known, or it only unwraps."""

    @property
    def algorithm(self) -> str | None:
        """What `wrap` uses, under its JSON Web Algorithms name (RFC 7518) if it has one, since
        other tools are told it; None as `key_id`."""

    @property
    def can_wrap(self) -> bool:
        """Whether `wrap` may be called at all."""

    def serves(self, key_id: str) -> bool:
        """Whether to ask it for the key `key_id`, which anybody who can write to the container
        may have chosen. Compares text; asks nobody."""

    async def wrap(self, payload: bytes) -> WrappedKey:
        """`payload` under the key that new files get."""

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The payload; called only for a `wrapped.key_id` that it serves."""

    async def aclose(self) -> None:
        """Let go of keys and connections, within a few seconds. Called once, at the end."""
