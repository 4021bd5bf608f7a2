"""Passwords of credentials, hashed with argon2id (RFC 9106, the profile for little memory: 64 MiB, three passes).

CPU work of some 170 ms, over four threads, and 64 MiB a call: call it in a thread, and bound how many run at once. A
hash made with other parameters still verifies; ``outdated`` says that it should be made anew at the next log-in.
"""

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_hasher = PasswordHasher()


def hash_password(password: str) -> str:
    """The string to store, with its parameters and a fresh salt."""
    return _hasher.hash(password)


def verify(password_hash: str, password: str) -> bool:
    """Whether the password is the one that was hashed; False for a hash nobody can read."""
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def outdated(password_hash: str) -> bool:
    """Whether the hash was made with weaker parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)
