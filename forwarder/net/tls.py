"""TLS contexts for both directions.

Serving: ``ServerTls`` gives each session the context of the files as they are (the certificate's renewal needs no
restart, and every listener follows). Files that changed are loaded into a context of their own, never into the one in
use: OpenSSL keeps a certificate for each kind of key in one, and would go on to serve an old one with ECDSA beside a
new one with RSA. When they do not load, the old context stays in use, ``trouble`` holds the reason, and a warning is
logged once per change; so it is when the certificate in use ends. The very first load has no old pair:
``TlsFilesError``. Every cipher suite is taken that OpenSSL has in its default list, also those without forward secrecy,
ours preferred: a host that knows no better would send in the clear instead, and a printer not at all.

Sending: opportunistic TLS (RFC 7435) takes any certificate and also weak keys and hashes, since the alternative is
clear text; ``verify=True`` takes only what the system's authorities vouch for, for the very name that is dialled (what
MTA-STS demands, RFC 8461 4.2). Where certificates are judged by the host's TLSA records, ``shown`` are those to judge.
TLS 1.2 is the least in both directions (RFC 8996). Nowhere do we compute in a group of the other side's making
(``without_dhe``).

Limits: one certificate for all names. A renewal that writes the certificate first and the key later is seen
as a bad pair in between: the old one is kept, and the next look finds both.
"""

import _ssl
import os
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

import structlog

from forwarder.clock import utc_now
from forwarder.net.stamps import stamp_of

_log = structlog.get_logger("forwarder.net.tls")


class TlsMode(StrEnum):
    """What a session to an MX host asks of TLS."""

    OFF = "off"  # never
    OPPORTUNISTIC = "opportunistic"  # when offered, with any certificate
    REQUIRED = "required"  # encrypted or not at all, with any certificate
    VERIFIED = "verified"  # encrypted, with a certificate that is valid for the host's name


class TlsFilesError(Exception):
    """Certificate and key cannot be used; str() says which file and why."""


class ServerTls:
    """The certificate we serve."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key
        self.trouble = ""  # why the files on disk are not the pair in use; "" when they are
        self._seen = stamp_of(certificate), stamp_of(key)
        self._context = _server_context(certificate, key)
        self._ends = _end_of(certificate)
        self._is_told = False  # that it has ended

    def context(self) -> ssl.SSLContext:
        """For the next session; looks first whether the files changed (two stat calls)."""
        self.refresh()
        return self._context

    def refresh(self, *, again: bool = False) -> bool:
        """Load changed files; False when there was nothing new or the new pair is bad.

        ``again``: also those that could not be used the last time, for whoever has mended what no look at them shows.
        """
        stamp = stamp_of(self.certificate), stamp_of(self.key)
        if stamp == self._seen and not (again and self.trouble):
            self._warn_when_over()
            return False
        self._seen = stamp
        try:
            self._context = _server_context(self.certificate, self.key)
        except TlsFilesError as exc:
            self.trouble = str(exc)
            _log.warning("the new certificate cannot be used; the old one stays", reason=self.trouble)
            return False
        self.trouble = ""
        _log.info("the certificate is loaded anew", certificate=str(self.certificate))
        self._ends = _end_of(self.certificate)
        self._is_told = False
        self._warn_when_over()
        return True

    def _warn_when_over(self) -> None:
        """Once for each certificate, and once more for a clock that was ahead when it was said.

        No session with us tells why mail programs begin to refuse it.
        """
        if self._ends is None:
            return
        is_over = utc_now() >= self._ends
        if is_over and not self._is_told:
            _log.warning(
                "the certificate has ended and mail programs refuse it; renew it, no restart is needed",
                certificate=str(self.certificate),
                ended=self._ends.isoformat(),
            )
        self._is_told = is_over


def client_context(*, verify: bool, weak: bool = True) -> ssl.SSLContext:
    """For sessions to MX hosts; costs some 10 ms, so make it once. ``weak``: what does not verify may be weak too."""
    if verify:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        # RFC 8461 4.2: the name stands among the alternative names
        context.hostname_checks_common_name = False
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if weak:
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # weak beats none: the alternative is clear text
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return without_dhe(context)


def without_dhe(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context of a client without finite-field Diffie-Hellman, whose group the server makes up in TLS 1.2.

    One of 10,000 bits takes us five seconds, in the event loop, and any host may ask for it. Whoever has nothing but
    these and TLS 1.2 is hard to find: OpenSSL has had curves since 2010. Where the system's policy (openssl.cnf) leaves
    us nothing else of TLS 1.2, TLS 1.3 is what is left.
    """
    kept = [each for each in context.get_ciphers() if not each["kea"].startswith("kx-dhe")]
    if any(each["protocol"] != "TLSv1.3" for each in kept):
        context.set_ciphers(":".join(each["name"] for each in kept))
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        _log.warning(
            "OpenSSL's configuration leaves no cipher suite of TLS 1.2 but with finite-field Diffie-Hellman, which a "
            "client here does not speak; hosts without TLS 1.3 cannot be talked to in TLS (CipherString in openssl.cnf)"
        )
    return context


def shown(connection: ssl.SSLObject) -> list[bytes]:
    """The certificates that a server has shown, in DER, its own first; unverified."""
    own = getattr(connection, "get_unverified_chain", None)
    if own is not None:  # since Python 3.13
        return list(own())
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]  # noqa: SLF001
    return [each.public_bytes(_ssl.ENCODING_DER) for each in chain or ()]


def served(certificate: Path) -> tuple[datetime, datetime, list[str]]:
    """From when until when the certificate that a file begins with is valid, and the hosts it names.

    ValueError, OSError.
    """
    from cryptography import x509

    from forwarder.mail.dane import alternative_names

    own = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    return own.not_valid_before_utc, own.not_valid_after_utc, alternative_names(own)


def _end_of(certificate: Path) -> datetime | None:
    try:
        return served(certificate)[1]
    except (OSError, ValueError):  # OpenSSL reads more than the other library
        return None


def self_signed(
    hostnames: Sequence[str], into: Path, *, valid_for: timedelta = timedelta(days=365)
) -> tuple[Path, Path]:
    """Write certificate.pem and key.pem (0600), valid since an hour ago, for tests and the demo; their paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hostnames[0][:64])])
    now = utc_now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + valid_for)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in hostnames]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    into.mkdir(parents=True, exist_ok=True)
    paths = into / "certificate.pem", into / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers("DEFAULT:!PSK:!SRP")
    try:
        # an encrypted key must not make OpenSSL ask a terminal for its password
        context.load_cert_chain(certificate, key, password=b"")
    except ssl.SSLError as exc:
        other = exc.reason or "not PEM, or the key has a password"
        reason = "they do not belong together" if "MISMATCH" in str(exc) else other
        raise TlsFilesError(f"{certificate} and {key} cannot be used: {reason}") from exc
    except OSError as exc:
        closed = [str(path) for path in (certificate, key) if path.is_dir() or not os.access(path, os.R_OK)]
        raise TlsFilesError(f"{' and '.join(closed) or certificate} cannot be read: {exc.strerror}") from exc
    return context
