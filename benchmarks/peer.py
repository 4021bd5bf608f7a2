"""The peers: Postfix alone, and Postfix with OpenDKIM and postsrsd, as a mail forwarder on loopback.

Tuned as well as we know how: milter on a unix socket, no DNS look-ups, no rate limits, 20 parallel deliveries, the
connection cache on demand. Everything lives in one temporary folder and listens on 127.0.0.1 only; each process
is ended by its own id. Needs root, as Postfix does.
"""

import contextlib
import grp
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.machine import environment, wait_for_port
from benchmarks.sink import SINK_PORT

_SRS_FORWARD, _SRS_REVERSE = 10001, 10002

_MAIN = """\
compatibility_level = 3.6
config_directory = {etc}
queue_directory = {spool}
data_directory = {data}
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.fwd.test
mydomain = fwd.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
disable_dns_lookups = yes
smtp_host_lookup = native
smtpd_peername_lookup = no
relayhost = [127.0.0.1]:{sink}
virtual_alias_domains = fwd.test
virtual_alias_maps = hash:{etc}/valias
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_error_sleep_time = 0
in_flow_delay = 0
default_process_limit = 100
default_destination_concurrency_limit = 20
smtp_destination_concurrency_limit = 20
smtp_destination_recipient_limit = 50
initial_destination_concurrency = 20
smtp_connection_cache_on_demand = yes
smtp_connection_reuse_count_limit = 0
smtp_tls_security_level = none
smtpd_tls_security_level = none
message_size_limit = 52428800
mailbox_size_limit = 0
qmgr_message_active_limit = 20000
qmgr_message_recipient_limit = 20000
queue_minfree = 0
maillog_file = {root}/mail.log
maillog_file_prefixes = {root}
"""

_FULL = """\
smtpd_milters = unix:{root}/dkim/milter.sock
milter_default_action = tempfail
milter_protocol = 6
sender_canonical_maps = tcp:127.0.0.1:{forward}
sender_canonical_classes = envelope_sender
recipient_canonical_maps = tcp:127.0.0.1:{reverse}
recipient_canonical_classes = envelope_recipient,header_recipient
"""

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""

_OPENDKIM = """\
Syslog no
Mode s
RequireSafeKeys no
Canonicalization relaxed/relaxed
Domain fwd.test
KeyTable file:{root}/keytable
SigningTable refile:{root}/signtable
InternalHosts 0.0.0.0/0
OversignHeaders From
Socket local:{root}/dkim/milter.sock
UMask 000
UserID opendkim
Background no
PidFile {root}/opendkim.pid
"""


class Postfix:
    """One Postfix instance; ``full`` adds OpenDKIM (RSA-2048) and postsrsd, the whole job."""

    def __init__(self, root: Path, *, full: bool, port: int) -> None:
        self.root, self.full, self.port = root, full, port
        self.name = "Postfix + OpenDKIM + postsrsd" if full else "Postfix alone"
        self._helpers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._write()
        if self.full:
            self._helpers.append(
                subprocess.Popen(
                    ["opendkim", "-f", "-x", str(self.root / "opendkim.conf")], env=environment()
                )
            )
            self._helpers.append(
                subprocess.Popen(
                    [
                        "postsrsd",
                        "-4",
                        f"-s{self.root}/srs.secret",
                        "-dfwd.test",
                        "-uopendkim",
                        "-l127.0.0.1",
                    ],
                    env=environment(),
                )
            )
            wait_for_port(_SRS_FORWARD, seconds=10)
            self._wait_for_milter()
        subprocess.run(
            ["postfix", "-c", str(self.root / "etc"), "start"],
            env=environment(),
            check=True,
            capture_output=True,
        )
        wait_for_port(self.port, seconds=20)

    def roots(self) -> list[int]:
        pids = [helper.pid for helper in self._helpers]
        with contextlib.suppress(OSError, ValueError):
            pids.append(int((self.root / "spool/pid/master.pid").read_text()))
        return pids

    def stop(self) -> None:
        subprocess.run(
            ["postfix", "-c", str(self.root / "etc"), "stop"],
            env=environment(),
            check=False,
            capture_output=True,
        )
        for helper in self._helpers:
            helper.send_signal(signal.SIGTERM)
            helper.wait(timeout=20)
        self._helpers.clear()

    def _wait_for_milter(self) -> None:
        deadline = time.monotonic() + 10
        while not (self.root / "dkim/milter.sock").exists():
            if time.monotonic() > deadline:
                raise RuntimeError("OpenDKIM does not come up; its words are above")
            time.sleep(0.05)

    def _write(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in ("etc", "spool", "data", "dkim"):
            (self.root / folder).mkdir(parents=True)
        self.root.chmod(0o755)
        postfix = pwd.getpwnam("postfix")
        os.chown(self.root / "data", postfix.pw_uid, grp.getgrgid(postfix.pw_gid).gr_gid)
        etc = self.root / "etc"
        main = _MAIN.format(
            etc=etc, spool=self.root / "spool", data=self.root / "data", sink=SINK_PORT, root=self.root
        )
        if self.full:
            main += _FULL.format(root=self.root, forward=_SRS_FORWARD, reverse=_SRS_REVERSE)
            self._write_helpers()
        (etc / "main.cf").write_text(main)
        (etc / "master.cf").write_text(_MASTER.format(port=self.port))
        rows = [f"alias{n}@fwd.test user{n}@dest.test" for n in range(1, 1001)]
        rows += [f"{n}alias7@fwd.test user{n}@dest.test" for n in range(1, 51)]
        (etc / "valias").write_text("\n".join([*rows, "@fwd.test catchall@dest.test"]) + "\n")
        subprocess.run(["postmap", "-c", str(etc), f"hash:{etc}/valias"], env=environment(), check=True)

    def _write_helpers(self) -> None:
        key = self.root / "dkim/k.private"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        user = pwd.getpwnam("opendkim")
        for path in (self.root / "dkim", key):
            os.chown(path, user.pw_uid, user.pw_gid)
        key.chmod(0o600)
        (self.root / "srs.secret").write_text("a-secret-of-the-benchmark\n")
        (self.root / "opendkim.conf").write_text(_OPENDKIM.format(root=self.root))
        (self.root / "keytable").write_text(f"k fwd.test:sel:{key}\n")
        (self.root / "signtable").write_text("* k\n")
