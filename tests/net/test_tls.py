import contextlib
import os
import shutil
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from forwarder.net.tls import ServerTls, TlsFilesError, client_context, self_signed


def served_name(context: ssl.SSLContext) -> str:
    """The common name of the certificate that a handshake with this context shows."""
    ends = [ssl.MemoryBIO() for _ in range(4)]
    there = context.wrap_bio(ends[0], ends[1], server_side=True)
    here = client_context(verify=False).wrap_bio(ends[2], ends[3], server_hostname="x.test")
    for _ in range(4):
        for side in (here, there):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            ends[0].write(ends[3].read())
            ends[2].write(ends[1].read())
    shown = here.getpeercert(binary_form=True)
    assert shown is not None
    name = x509.load_der_x509_certificate(shown).subject.rfc4514_string()
    return name.removeprefix("CN=")


def test_self_signed_files(tmp_path: Path) -> None:
    certificate, key = self_signed(["mx.example.test", "mx2.example.test"], tmp_path / "new")
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert served_name(ServerTls(certificate, key).context()) == "mx.example.test"


def test_a_new_pair_is_taken_by_the_same_context(tmp_path: Path) -> None:
    tls = ServerTls(*self_signed(["old.test"], tmp_path))
    context = tls.context()
    assert not tls.refresh()
    self_signed(["new.test"], tmp_path)
    assert tls.context() is context
    assert served_name(context) == "new.test"
    assert tls.trouble == ""


def test_a_bad_pair_keeps_the_old_one_and_says_so(tmp_path: Path) -> None:
    tls = ServerTls(*self_signed(["old.test"], tmp_path))
    other, _ = self_signed(["other.test"], tmp_path / "other")
    shutil.copy(other, tmp_path / "certificate.pem")  # without its key
    assert not tls.refresh()
    assert "do not belong together" in tls.trouble
    assert served_name(tls.context()) == "old.test"
    (tmp_path / "certificate.pem").write_text("banana")
    assert not tls.refresh()
    assert served_name(tls.context()) == "old.test"
    (tmp_path / "certificate.pem").unlink()
    assert not tls.refresh()
    assert "cannot be read" in tls.trouble
    self_signed(["new.test"], tmp_path)
    assert tls.refresh()
    assert (tls.trouble, served_name(tls.context())) == ("", "new.test")


def test_the_first_load_has_to_succeed(tmp_path: Path) -> None:
    with pytest.raises(TlsFilesError, match="cannot be read"):
        ServerTls(tmp_path / "no.pem", tmp_path / "no.key")


def test_a_name_that_is_no_alternative_name_does_not_count() -> None:
    assert client_context(verify=True).hostname_checks_common_name is False


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    server = ServerTls(*self_signed(["x.test"], tmp_path)).context()
    for context in (server, client_context(verify=True), client_context(verify=False)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_context(verify=True).verify_mode is ssl.CERT_REQUIRED
