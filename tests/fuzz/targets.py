"""The targets by name, and what each once found."""

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import envelope, local, service, tokens

TARGETS: dict[str, Callable[[bytes], None]] = {
    "encryptiondata": envelope.encryptiondata,
    "seal": envelope.seal,
    "posix_metadata": envelope.posix_metadata,
    "list_xml": service.list_xml,
    "error_xml": service.error_xml,
    "sas": tokens.sas,
    "connection_string": tokens.connection_string,
    "options": tokens.options,
    "jwk": local.jwk,
    "recovery_file": local.recovery_file,
    "status_socket": local.status_socket,
}

CORPUS = Path(__file__).parent / "corpus"


def found(name: str) -> list[Path]:
    """The inputs that once found something in this target."""
    return sorted((CORPUS / name).glob("*"))
