"""Signatures of bundles: Ed25519 over the bytes of the manifest, which has a SHA-256 for each file.

`manifest.json.sig` beside the manifest holds the 64 bytes. Key files are PEM (PKCS #8, and
SubjectPublicKeyInfo), which other tools read too. Everything here needs the extra `signing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.errors import BundleError, UsageError
from edgespec.key_files import publish_pair, warn_if_readable
from edgespec.publish import replace_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = "manifest.json.sig"
PUBLIC, SECRET = ".signing_key", ".signing_secret"
_CONTEXT = b"edgespec bundle manifest, signature 1\n"
"""Bytes before the manifest's, so that a signature made for another purpose does not fit."""


def make_signing_keys(folder: Path, name: str = "bundle") -> tuple[Path, Path]:
    """Writes a pair for signing bundles into `folder`: public and secret key file, or neither.

    Raises `UsageError` for a name that is no file name, and where there is such a key already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def write(place: Path) -> tuple[Path, Path]:
        secret = Ed25519PrivateKey.generate()
        files = place / "public", place / "secret"
        files[0].write_bytes(
            secret.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        files[1].write_bytes(
            secret.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    return publish_pair(folder, name, (PUBLIC, SECRET), write)


def read_secret(path: Path) -> Ed25519PrivateKey:
    """The key of a secret key file. Raises `UsageError`. Warns if other users can read the file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(_no_key(path, SECRET)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(_no_key(path, SECRET))
    warn_if_readable(path)
    return key


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Signs the bundle at `folder` as it is now; replaces an earlier signature."""
    from edgespec.manifest import MANIFEST

    signature = key.sign(_CONTEXT + (folder / MANIFEST).read_bytes())
    replace_file(folder / SIGNATURE, signature, mode=0o644)


def verify(folder: Path, manifest: bytes, key: Path) -> None:
    """Checks the signature of a manifest's bytes against a public key file.

    Raises `BundleError` if the bundle has no signature or another one, `UsageError` for a file that
    is no public key.
    """
    from cryptography.exceptions import InvalidSignature

    public = _read_public(key)
    try:
        signature = (folder / SIGNATURE).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} has no signature; sign it with 'edgespec export --sign'"
        ) from error
    try:
        public.verify(signature, _CONTEXT + manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"the signature of {folder} does not fit its manifest and {key}: the manifest was "
            "changed, or another key signed it; do not use this bundle"
        ) from error


def _read_public(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(_no_key(path, PUBLIC)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(_no_key(path, PUBLIC))
    return key


def _no_key(path: Path, suffix: str) -> str:
    return f"{path} is no {suffix} file; make a pair with 'edgespec keygen --signing'"
