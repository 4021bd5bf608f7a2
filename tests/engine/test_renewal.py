"""A certificate that is renewed as certbot does it: new files beside the old, and links that lead to these then."""

from pathlib import Path

import pytest
from cryptography import x509

from forwarder.net.tls import self_signed
from tests.harness import EngineProcess, House
from tests.peers.client import Client, any_certificate

FILES = ("fullchain", "privkey")


class Certbot:
    """``live`` with links to ``archive``, relative as certbot makes them."""

    def __init__(self, folder: Path) -> None:
        self.live, self._archive, self._scratch = (folder / name for name in ("live", "archive", "scratch"))
        self.live.mkdir()
        self._archive.mkdir()
        self._number = 0

    @property
    def tls(self) -> dict[str, str]:
        certificate, key = (str(self.live / f"{name}.pem") for name in FILES)
        return {"certificate": certificate, "key": key}

    def renew(self, name: str) -> None:
        """The files first, and then each link is removed and made anew."""
        self._number += 1
        for file, made in zip(FILES, self_signed([name], self._scratch), strict=True):
            made.replace(self._archive / f"{file}{self._number}.pem")
        for file in FILES:
            link = self.live / f"{file}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / "archive" / f"{file}{self._number}.pem")


async def served(house: House, listener: str) -> str:
    """The name in the certificate that a listener shows."""
    at = house.port(listener)
    at_once = any_certificate() if listener.endswith("-tls") else None
    async with Client("127.0.0.1", at, tls=at_once) as client:
        await client.ehlo()
        if at_once is None:
            assert (await client.starttls()).code == 220
        return x509.load_der_x509_certificate(client.shown_certificate()).subject.rfc4514_string()


@pytest.mark.parametrize("processes", [1, 2])
async def test_every_listener_follows_the_links_to_the_renewed_files(
    house: House, tmp_path: Path, processes: int
) -> None:
    certbot = Certbot(tmp_path)
    certbot.renew("first.test")
    async with EngineProcess(house, tls=certbot.tls, workers={"processes": processes}) as engine:
        for name in ("first.test", "second.test", "third.test"):
            if name != "first.test":
                certbot.renew(name)
            for listener in ("mx", "submission", "submission-tls"):
                # Several: of two processes either may take a connection.
                found = {await served(house, listener) for _ in range(8)}
                assert found == {f"CN={name}"}, listener
        (certbot.live / "privkey.pem").unlink()  # amid a renewal
        assert {await served(house, "mx") for _ in range(8)} == {"CN=third.test"}
        certbot.renew("fourth.test")
        assert {await served(house, "submission-tls") for _ in range(8)} == {"CN=fourth.test"}
        assert '"error"' not in engine.log()
