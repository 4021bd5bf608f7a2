"""The certificate we serve and its renewal; what is asked of the other side."""

import contextlib
import errno
import os
import shutil
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from forwarder.net.tls import ServerTls, TlsFilesError, client_context, self_signed, without_dhe
from forwarder.net.tls import _server_context as server_context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's side of a handshake in memory."""
    ends = [ssl.MemoryBIO() for _ in range(4)]
    there = server.wrap_bio(ends[0], ends[1], server_side=True)
    here = client.wrap_bio(ends[2], ends[3], server_hostname="x.test")
    for _ in range(4):
        for side in (here, there):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            ends[0].write(ends[3].read())
            ends[2].write(ends[1].read())
    return here


def served_name(context: ssl.SSLContext) -> str:
    """The common name of the certificate that a handshake with this context shows."""
    shown = handshake(context, client_context(verify=False)).getpeercert(binary_form=True)
    assert shown is not None
    name = x509.load_der_x509_certificate(shown).subject.rfc4514_string()
    return name.removeprefix("CN=")


def test_self_signed_files(tmp_path: Path) -> None:
    certificate, key = self_signed(["mx.example.test", "mx2.example.test"], tmp_path / "new")
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert served_name(ServerTls(certificate, key).context()) == "mx.example.test"


def test_a_new_pair_is_taken(tmp_path: Path) -> None:
    tls = ServerTls(*self_signed(["old.test"], tmp_path))
    context = tls.context()
    assert not tls.refresh()
    assert tls.context() is context
    self_signed(["new.test"], tmp_path)
    assert served_name(tls.context()) == "new.test"
    assert tls.trouble == ""


def test_a_new_pair_with_another_kind_of_key_takes_the_place_of_the_old_one(
    tmp_path: Path, rsa_pair: tuple[Path, Path]
) -> None:
    tls = ServerTls(*self_signed(["old.test"], tmp_path))  # ECDSA
    for new, old in zip(rsa_pair, (tls.certificate, tls.key), strict=True):
        shutil.copy(new, old)
    assert tls.refresh()
    assert served_name(tls.context()) == "x.test"
    only_ecdsa = client_context(verify=False)
    only_ecdsa.maximum_version = ssl.TLSVersion.TLSv1_2
    only_ecdsa.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        handshake(tls.context(), only_ecdsa)


def test_a_certificate_that_has_ended_is_said_once(tmp_path: Path) -> None:
    said = "the certificate has ended and mail programs refuse it; renew it, no restart is needed"
    with capture_logs() as logs:
        tls = ServerTls(*self_signed(["mx.test"], tmp_path, valid_for=timedelta(hours=-1) / 2))
        tls.context()
        tls.context()
        assert [line["event"] for line in logs] == [said]
        self_signed(["mx.test"], tmp_path)
        assert tls.refresh()
        tls.context()
    assert [line["event"] for line in logs] == [said, "the certificate is loaded anew"]


def test_a_certificate_that_ends_while_it_is_served_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ServerTls(*self_signed(["mx.test"], tmp_path, valid_for=timedelta(days=90)))
    with capture_logs() as logs:
        tls.context()
        assert logs == []
        monkeypatch.setattr("forwarder.net.tls.utc_now", lambda: datetime.now(UTC) + timedelta(days=91))
        tls.context()
        tls.context()
    assert [line["log_level"] for line in logs] == ["warning"]


def test_the_end_of_a_certificate_is_said_although_a_clock_ahead_has_said_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ServerTls(*self_signed(["mx.test"], tmp_path, valid_for=timedelta(days=90)))
    now = datetime.now(UTC)
    with capture_logs() as logs:
        for days in (3650, 3650, 0, 91, 91):
            monkeypatch.setattr("forwarder.net.tls.utc_now", lambda days=days: now + timedelta(days=days))
            tls.context()
    assert [line["log_level"] for line in logs] == ["warning", "warning"]


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


def test_a_renewed_key_is_taken_once_its_mode_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program that renews leaves it: readable for root alone, until somebody mends that."""

    def of_a_user(
        certificate: Path, key: Path
    ) -> ssl.SSLContext:  # the tests' own may be root, who reads all
        if not key.stat().st_mode & stat.S_IRUSR:
            raise TlsFilesError(f"{key} cannot be read")
        return load(certificate, key)

    load = server_context
    monkeypatch.setattr("forwarder.net.tls._server_context", of_a_user)
    tls = ServerTls(*self_signed(["old.test"], tmp_path))
    self_signed(["new.test"], tmp_path)
    tls.key.chmod(0)
    assert served_name(tls.context()) == "old.test"
    seen = tls.key.stat().st_ctime_ns
    while tls.key.stat().st_ctime_ns == seen:  # on an old kernel for some milliseconds
        tls.key.chmod(0o600)
    assert served_name(tls.context()) == "new.test"


def test_who_reloads_has_files_looked_at_again_that_could_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ServerTls(*self_signed(["old.test"], tmp_path))
    self_signed(["new.test"], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("forwarder.net.tls._server_context", no_descriptor_left)
        assert not tls.refresh()
        assert not tls.refresh(again=True)
    assert not tls.refresh()
    assert tls.refresh(again=True)
    assert (tls.trouble, served_name(tls.context())) == ("", "new.test")
    assert not tls.refresh(again=True)


def no_descriptor_left(certificate: Path, key: Path) -> ssl.SSLContext:
    raise TlsFilesError(f"{certificate} cannot be read: {os.strerror(errno.EMFILE)}")


def test_the_first_load_has_to_succeed(tmp_path: Path) -> None:
    with pytest.raises(TlsFilesError, match="cannot be read"):
        ServerTls(tmp_path / "no.pem", tmp_path / "no.key")


def test_the_file_that_cannot_be_used_is_named(tmp_path: Path, rsa_pair: tuple[Path, Path]) -> None:
    certificate, key = rsa_pair
    with pytest.raises(TlsFilesError, match=r"^\S*/no\.key cannot be read: No such file"):
        ServerTls(certificate, tmp_path / "no.key")
    with pytest.raises(TlsFilesError, match=f"^{tmp_path} cannot be read: Is a directory"):
        ServerTls(tmp_path, key)
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsFilesError, match="the key has a password"):
        ServerTls(certificate, key)


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ("AES128-SHA", "AES128-SHA"),
        ("AES256-SHA256", "AES256-SHA256"),
        ("ECDHE-RSA-AES256-SHA", "ECDHE-RSA-AES256-SHA"),
        ("AES128-SHA:AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ],
)
def test_an_old_printer_is_served_and_the_best_it_knows_is_chosen(
    rsa_pair: tuple[Path, Path], known: str, chosen: str
) -> None:
    client = client_context(verify=False)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(known)
    cipher = handshake(ServerTls(*rsa_pair).context(), client).cipher()
    assert cipher is not None
    assert cipher[0] == chosen


@pytest.fixture
def rsa_pair(tmp_path: Path) -> tuple[Path, Path]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    certificate, secret = tmp_path / "rsa.pem", tmp_path / "rsa.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, secret


def test_a_name_that_is_no_alternative_name_does_not_count() -> None:
    assert client_context(verify=True).hostname_checks_common_name is False


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    server = ServerTls(*self_signed(["x.test"], tmp_path)).context()
    for context in (server, client_context(verify=True), client_context(verify=False)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_context(verify=True).verify_mode is ssl.CERT_REQUIRED


def test_no_host_makes_us_compute_in_a_group_of_its_own() -> None:
    """Five seconds of work for 10,000 bits; and the level of security stays what it was."""
    weak, strong = client_context(verify=False), client_context(verify=False, weak=False)
    verifying = client_context(verify=True)
    for context in (weak, strong, verifying):
        assert [each["name"] for each in context.get_ciphers() if "DHE-RSA" in each["name"]]
        assert not [each["name"] for each in context.get_ciphers() if each["name"].startswith("DHE-")]
    assert (weak.security_level, strong.security_level > 0) == (0, True)
    assert verifying.security_level == ssl.create_default_context().security_level


def test_where_the_system_leaves_nothing_else_of_tls_1_2_a_client_speaks_tls_1_3(tmp_path: Path) -> None:
    policy = tmp_path / "openssl.cnf"
    policy.write_text(
        "openssl_conf = all\n[all]\nssl_conf = tls\n[tls]\nsystem_default = here\n[here]\n"
        "CipherString = DHE-RSA-AES256-GCM-SHA384\n"
    )
    script = (
        "from forwarder.net.tls import client_context\n"
        "for verify, weak in ((True, True), (False, False), (False, True)):\n"
        "    print(client_context(verify=verify, weak=weak).minimum_version.name)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"OPENSSL_CONF": str(policy)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line for line in ran.stdout.splitlines() if line.startswith("TLSv1_")]
    assert found == ["TLSv1_3", "TLSv1_3", "TLSv1_2"]  # what does not verify may be weak, whatever the policy
    assert ran.stdout.count("leaves no cipher suite of TLS 1.2") == 2

    server = server_context(*self_signed(["x.test"], tmp_path))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("DHE-RSA-AES256-GCM-SHA384")
    assert handshake(server, without_dhe(client)).version() == "TLSv1.3"
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(server, client)
