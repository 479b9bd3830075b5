"""Providers that an installed package adds, by an entry point of the group below."""

from collections.abc import Callable
from importlib.metadata import entry_points

from blobfs.errors import BlobfsError, OptionError
from blobfs.providers.contract import KeyProvider

GROUP = "blobfs.key_providers"


def open_package_provider(text: str, key_id: str | None) -> KeyProvider:
    """The provider that `text`, NAME or NAME:argument, names. Raises OptionError, or what errors
    of ours the package raises."""
    name, _, argument = text.partition(":")
    found = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(found) != 1:
        raise OptionError(_not_one(name, len(found)))
    (point,) = found.values()
    problem: BlobfsError
    provider: object = None
    try:
        factory: Callable[[str, str], object] = point.load()
        provider = factory(argument, key_id or "")
        if isinstance(provider, KeyProvider):
            return provider
    except BlobfsError as exc:
        problem = exc
    except Exception as exc:  # its text may quote a secret, so only its type is shown
        problem = OptionError(f"the key_provider {name} cannot be used: {type(exc).__name__}")
    else:
        problem = OptionError(f"the key_provider {name} is none: it lacks methods of the contract")
    raise problem


def _not_one(name: str, number: int) -> str:
    if number:
        return f"several packages have a key_provider {name}: uninstall all but one"
    known = ", ".join(sorted({point.name for point in entry_points(group=GROUP)}))
    there = f"there is {known}" if known else "no installed package has any"
    return f"there is no key_provider {name}: {there}"
