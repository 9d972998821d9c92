"""Recognise the program files that this user's own evaluations wrote.

Loading a program (TorchScript, AOTInductor) runs code from its file, so a program from somebody else must not be loaded
by accident. Each program that is written gets a signature: a checksum of its content that depends on a secret key. The
key is made once per user, in a file that only this user can read.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from txl.files import hash_of_file


def sign_program(file: Path) -> str | None:
    """The signature of a program file, in hex. None if this user has no folder that the key can be stored in."""
    try:
        key = _signing_key()
    except OSError:
        return None
    return hash_of_file(file, hmac.new(key, digestmod=hashlib.sha256))


def is_signed_program(file: Path, signature: object) -> bool:
    """Whether `signature` is this user's signature of the program file."""
    expected = sign_program(file)
    return expected is not None and isinstance(signature, str) and hmac.compare_digest(expected, signature)


def _signing_key() -> bytes:
    """The user's secret key; it is made on first use."""
    folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "txl"
    path = folder / "program.key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".program.key.{os.getpid()}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        if not path.exists():
            os.replace(partial, path)
        partial.unlink(missing_ok=True)
    return path.read_bytes()
