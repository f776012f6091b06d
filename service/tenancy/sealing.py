"""Secrets that the server needs in plain text are sealed in the database: a copy of it does not show them.

A sealed secret is ``sealed1:`` and, in base64, a nonce of 12 bytes and the secret under AES-256-GCM (NIST SP 800-38D),
bound to the id of the row that it belongs to.
"""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import ServiceError
from ..settings import Settings

_MARK = "sealed1:"
_NONCE_BYTES = 12
SHORTEST_KEY = 32


class WrongKey(ServiceError):
    """A secret cannot be sealed or opened; the detail says what to do."""

    status, slug, title = 503, "wrong-key", "The server's secret key is not usable"


class Sealer:
    """Seals with the first line of the key file, and opens with any of its lines.

    Args:
        file: the key file: a line of at least 32 random characters for each key, the newest first.
        make: whether to make a file that is not there.
    """

    def __init__(self, file: Path, *, make: bool) -> None:
        self._file = file
        self._make = make

    def seal(self, secret: bytes, owner: str) -> str:
        """Seal a secret of the row with this id.

        Raises:
            WrongKey: there is no usable key.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys()[0].encrypt(nonce, secret, owner.encode())
        return _MARK + base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, owner: str) -> bytes:
        """The secret.

        Raises:
            WrongKey: no key opens it, or it was sealed for another row.
        """
        content = base64.b64decode(sealed.removeprefix(_MARK))
        for key in self._keys():
            try:
                return key.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], owner.encode())
            except InvalidTag:
                continue
        raise WrongKey(
            f"no key in {self._file} opens this secret. Give every replica the same CDKA_SECRET_KEY_FILE, keep earlier "
            "keys in it as further lines, or create the webhook again"
        )

    def check(self) -> None:
        """Find out at start whether there is a key.

        Raises:
            WrongKey: there is none.
        """
        self._keys()

    def _keys(self) -> list[AESGCM]:
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            if not self._make:
                raise WrongKey(f"CDKA_SECRET_KEY_FILE {self._file} does not exist") from None
            text = self._made()
        except OSError as error:
            raise WrongKey(f"the key file {self._file} cannot be read: {error.strerror}") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or min(map(len, lines)) < SHORTEST_KEY:
            raise WrongKey(
                f"each line of the key file {self._file} must have at least {SHORTEST_KEY} random characters"
            )
        return [AESGCM(_derived(line)) for line in lines]

    def _made(self) -> str:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        made = secrets.token_urlsafe(32) + "\n"
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            # Another replica on this machine was first.
            return self._file.read_text()
        with os.fdopen(descriptor, "w") as stream:
            stream.write(made)
        return made


def _derived(line: str) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"cdka: sealed secrets").derive(line.encode())


def is_sealed(secret: str) -> bool:
    """Whether a stored secret is sealed; earlier revisions stored them as they are."""
    return secret.startswith(_MARK)


def sealer(settings: Settings) -> Sealer:
    """The sealer of ``CDKA_SECRET_KEY_FILE``; without one, of a key in ``CDKA_HOME`` that is made when it is needed."""
    given = settings.secret_key_file
    return Sealer(given or settings.home / "secret-key", make=given is None)
