"""The promises while being measured: each acknowledged message arrived exactly once, and its signature verifies.

Numbered messages go through the running engine into a sink that keeps their bytes; dkimpy, which is not what signed
them, verifies each. A speed that was bought with a promise is not a result.
"""

import base64
from pathlib import Path

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from benchmarks import latency
from benchmarks.engine import Engine


async def prove(engine: Engine, *, messages: int = 300, rate: float = 200.0) -> list[str]:
    """What was found wrong, one sentence each; empty when every promise held."""
    timings = await latency.measure(engine, rate=rate, messages=messages)
    wrong: list[str] = []
    if timings.refused:
        wrong.append(f"{timings.refused} of {messages} messages were refused")
    missing = [number for number in range(messages) if number not in timings.arrived]
    if missing:
        wrong.append(f"{len(missing)} acknowledged messages did not arrive")
    doubled = [number for number, copies in timings.arrived.items() if len(copies) > 1]
    if doubled:
        wrong.append(f"{len(doubled)} messages arrived more than once")
    record = _public_record(engine.root)
    unsigned = 0
    for copies in timings.arrived.values():
        if not dkim.verify(copies[0], dnsfunc=lambda *_, **__: record):
            unsigned += 1
    if unsigned:
        wrong.append(f"{unsigned} messages carry a signature that does not verify")
    return wrong


def _public_record(root: Path) -> bytes:
    """The TXT value of the service's RSA key, from the private key the engine made at its first start."""
    for path in sorted((root / "data/keys").glob("*.pem")):
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, RSAPrivateKey):
            public = key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    raise RuntimeError(f"no RSA key of the service in {root / 'data/keys'}")
