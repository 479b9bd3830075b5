"""Where key-encryption keys live: in a file, behind a command, in Azure Key Vault, in a package.

A provider wraps and unwraps content keys under keys that it may never give away. `contract` is the
interface, also for packages of others; `outside` watches over every provider that is not of this
process: deadline, checks of what it answers, one set of errors.
"""

from blobfs.providers.command import CommandProvider
from blobfs.providers.contract import KeyProvider
from blobfs.providers.local import LocalKeys
from blobfs.providers.outside import Outside
from blobfs.providers.package import open_package_provider
from blobfs.providers.vault import VaultProvider

__all__ = [
    "CommandProvider",
    "KeyProvider",
    "LocalKeys",
    "Outside",
    "VaultProvider",
    "open_package_provider",
]
