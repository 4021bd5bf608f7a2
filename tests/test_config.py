"""The configuration: defaults, units, the environment, and errors a person can act on."""

import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from forwarder.config import ConfigError, HostPort, Settings, load
from forwarder.config.settings import POOL_LEAST
from forwarder.store.engine import sqlite_path
from forwarder.store.postgresql import LEAST

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "given.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(tmp_path: Path, text: str, **environ: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), environ)
    return [(problem.key, problem.reason) for problem in caught.value.problems]


def test_the_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    settings = load(written(tmp_path, 'hostname = "mx1.example.net"'), {})
    assert settings.mx.listen == (("0.0.0.0", 25), ("::", 25))
    assert settings.mx.size_limit == 26_214_400
    assert settings.mx.recipients == 1000
    assert (settings.mx.connections_per_client, settings.mx.connections_per_minute) == (50, 300)
    assert settings.mx.bare_newline == "reject"
    assert settings.submission.listen == (("0.0.0.0", 587),)
    assert settings.submission.listen_tls == (("0.0.0.0", 465),)
    assert settings.submission.require_dns is True
    assert settings.api.listen == ("127.0.0.1", 8080)
    assert settings.dns.nameservers == ()
    assert settings.outbound.smarthost is None
    assert settings.outbound.port == 25
    assert settings.outbound.allow_private_destinations is False
    assert [delay.total_seconds() for delay in settings.retry.delays] == [
        60,
        300,
        900,
        1800,
        3600,
        7200,
        14400,
    ]
    assert settings.retry.give_up_after == timedelta(days=5)
    assert settings.srs.domain == "mx1.example.net"
    assert settings.dkim.domain == "mx1.example.net"
    assert settings.dkim.algorithms == ("rsa", "ed25519")
    assert settings.arc.enabled is True
    assert settings.logs.retention == timedelta(days=30)
    assert settings.workers.processes == 0
    assert settings.database.url == "sqlite:///data/forwarder.db"


def test_the_example_lists_every_key_with_its_default() -> None:
    example = tomllib.loads((ROOT / "config.example.toml").read_text(encoding="utf-8"))

    def keys(model: type, at: str = "") -> set[str]:
        found: set[str] = set()
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            nested = field.annotation if hasattr(field.annotation, "model_fields") else None
            found |= keys(nested, f"{at}{name}.") if nested else {f"{at}{name}"}
        return found

    def listed(values: dict[str, object], at: str = "") -> set[str]:
        found: set[str] = set()
        for name, value in values.items():
            if isinstance(value, dict) and name != "plans":
                found |= listed(value, f"{at}{name}.")
            else:
                found.add(f"{at}{name}")
        return found

    assert listed(example) == keys(Settings)
    assert Settings.model_validate(example) == Settings.model_validate({"hostname": "mx1.example.net"})


def test_every_key_of_the_example_has_a_comment() -> None:
    lines = (ROOT / "config.example.toml").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if " = " in line and not line.startswith("#") and "# " not in line]
    assert bare == []


@pytest.mark.parametrize(
    ("text", "octets"),
    [("25 MiB", 26_214_400), ("1kB", 1000), ("1 KiB", 1024), ("0.5 MiB", 524_288), ("7 B", 7), ("12", 12)],
)
def test_sizes(text: str, octets: int) -> None:
    given = Settings.model_validate({"hostname": "a", "mx": {"min_rate": text}})
    assert given.mx.min_rate == octets


@pytest.mark.parametrize("value", ["true", "-1", '"-1 MiB"', '"1 MiBs"', "1.5", "25", '"25"', "0", "999"])
def test_what_is_no_size_is_refused(tmp_path: Path, value: str) -> None:
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[mx]\nsize_limit = {value}')
    assert key == "mx.size_limit"
    assert '"25 MiB"' in reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172_800), ("1w", 604_800)],
)
def test_durations(text: str, seconds: float) -> None:
    given = Settings.model_validate({"hostname": "a", "dns": {"timeout": text}})
    assert given.dns.timeout.total_seconds() == seconds


@pytest.mark.parametrize("text", ["5", "m", "5 minutes", "-5m", "5m!", ""])
def test_a_duration_without_a_unit_is_refused(tmp_path: Path, text: str) -> None:
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[dns]\ntimeout = "{text}"')
    assert key == "dns.timeout"
    assert '"5m"' in reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[::1]:0", ("::1", 0)), ("127.0.0.1:65535", ("127.0.0.1", 65535)), (":25", ("0.0.0.0", 25))],
)
def test_listeners(text: str, expected: tuple[str, int]) -> None:
    given = Settings.model_validate({"hostname": "a", "mx": {"listen": [text]}})
    assert given.mx.listen == (expected,)
    assert str(HostPort(*expected)).endswith(str(expected[1]))


@pytest.mark.parametrize("text", ["25", "host", "::1:25", "[::1]", "a:b", "h:65536", "a b:25"])
def test_what_is_no_listener_is_refused(tmp_path: Path, text: str) -> None:
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[mx]\nlisten = ["{text}"]')
    assert key == "mx.listen"
    assert "host:port" in reason


@pytest.mark.parametrize(
    ("section", "key", "text", "said"),
    [
        ("dns", "nameservers", "unbound:53", "its address"),
        ("dns", "nameservers", "127.1:53", "its address"),
        ("dns", "nameservers", "1.1.1.1", '"1.1.1.1:53"'),
        ("dns", "nameservers", "1.1.1.1:0", '"1.1.1.1:53"'),
        ("dns", "timeout", "0s", "longer than nothing"),
        ("mx", "command_timeout", "0s", "longer than nothing"),  # each client would be told 421 at once
        ("mx", "data_timeout", "0s", "longer than nothing"),
        ("submission", "command_timeout", "0s", "longer than nothing"),
        ("submission", "data_timeout", "0s", "longer than nothing"),
        ("workers", "lease", "999ms", 'at least "1s"'),
        ("outbound", "smarthost", "relay", '"relay.example.net:25"'),
        ("outbound", "smarthost", "relay:0", '"relay.example.net:25"'),
        ("outbound", "smarthost", ":25", '"relay.example.net:25"'),
        ("api", "listen", "127.0.0.1", '"127.0.0.1:8080"'),
        ("outbound", "bind_ipv4", "::1", "IPv4 address"),
        ("outbound", "bind_ipv4", "eth0", "IPv4 address"),
        ("outbound", "bind_ipv6", "192.0.2.1", "IPv6 address"),
        ("outbound", "connect_timeout", "0s", "longer than nothing"),
        ("outbound", "dot_timeout", "0s", "longer than nothing"),
    ],
)
def test_what_no_delivery_could_work_with_is_refused(
    tmp_path: Path, section: str, key: str, text: str, said: str
) -> None:
    ((named, reason),) = problems(tmp_path, f'hostname = "a"\n[{section}]\n{key} = "{text}"')
    assert named == f"{section}.{key}"
    assert said in reason


def test_addresses_to_ask_and_to_send_from() -> None:
    given = Settings.model_validate(
        {
            "hostname": "a",
            "dns": {"nameservers": ["127.0.0.1:53", "[::1]:5353"]},
            "outbound": {"bind_ipv4": "192.0.2.1", "bind_ipv6": "2001:db8::1"},
        }
    )
    assert given.dns.nameservers == (("127.0.0.1", 53), ("::1", 5353))
    assert (given.outbound.bind_ipv4, given.outbound.bind_ipv6) == ("192.0.2.1", "2001:db8::1")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = {
        "FORWARDER_HOSTNAME": "mx2.example.net",
        "FORWARDER_MX__LISTEN": "127.0.0.1:2525,[::1]:2525",
        "FORWARDER_RETRY__DELAYS": "1s, 2m",
        "FORWARDER_ARC__ENABLED": "false",
        "FORWARDER_API__LISTEN": "",
        "FORWARDER_PLANS__GOLD__DOMAINS": "7",
        "PATH": "/bin",
    }
    settings = load(written(tmp_path, 'hostname = "mx1.example.net"\n[arc]\nenabled = true'), environ)
    assert settings.hostname == "mx2.example.net"
    assert settings.mx.listen == (("127.0.0.1", 2525), ("::1", 2525))
    assert settings.retry.delays == (timedelta(seconds=1), timedelta(minutes=2))
    assert settings.arc.enabled is False
    assert settings.api.listen is None
    assert settings.plans["gold"].domains == 7
    assert settings.plans["gold"].aliases == settings.plans["default"].aliases


def test_the_environment_alone_is_enough() -> None:
    assert load(None, {"FORWARDER_HOSTNAME": "mx.example"}).hostname == "mx.example"


def test_config_falls_back_to_the_variable_and_then_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('hostname = "here"')
    named = written(tmp_path, 'hostname = "named"')
    assert load(None, {}).hostname == "here"
    assert load(None, {"FORWARDER_CONFIG": named}).hostname == "named"
    assert load(named, {"FORWARDER_CONFIG": str(tmp_path / "config.toml")}).hostname == "named"


def test_without_any_file_the_error_says_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match=r"config\.example\.toml"):
        load(None, {})


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("hostnam = 'a'\nhostname = 'a'", "hostnam", "hostname"),
        ("hostname = 'a'\n[mx]\nsize_limt = 1", "mx.size_limt", "mx.size_limit"),
        ("hostname = 'a'\nsize_limit = 1", "size_limit", "mx.size_limit"),
        ("hostname = 'a'\n[retri]\nspread = 1", "retri", "retry"),
        ("hostname = 'a'\n[MX]\nrecipients = 1", "MX", "mx"),
        ("hostname = 'a'\n[mx]\nLISTEN = []", "mx.LISTEN", "mx.listen"),
        ("hostname = 'a'\n[plans.gold]\ndomain = 1", "plans.gold.domain", "plans.gold.domains"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_key_that_was_meant(
    tmp_path: Path, text: str, key: str, meant: str
) -> None:
    ((found, reason),) = problems(tmp_path, text)
    assert found == key
    assert f"did you mean {meant}" in reason


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FORWARDER_MX__LISTENN", "FORWARDER_MX__LISTEN"),
        ("FORWARDER_HOSTNAM", "FORWARDER_HOSTNAME"),
        ("FORWARDER_DATABASE_URL", "FORWARDER_DATABASE__URL"),
        ("FORWARDER_MX_SIZE_LIMIT", "FORWARDER_MX__SIZE_LIMIT"),
        ("FORWARDER_MX", "FORWARDER_MX__<KEY>"),
    ],
)
def test_an_unknown_variable_is_an_error(tmp_path: Path, name: str, meant: str) -> None:
    ((found, reason),) = problems(tmp_path, 'hostname = "a"', **{name: "x"})
    assert found == name
    assert meant in reason


def test_variables_of_container_platforms_and_our_own_are_left_alone(tmp_path: Path) -> None:
    environ = {
        "FORWARDER_PORT": "tcp://10.0.0.1:25",
        "FORWARDER_SERVICE_HOST": "10.0.0.1",
        "FORWARDER_DATABASE_PORT": "tcp://10.0.0.1:5432",
        "FORWARDER_OUTBOUND_PORT": "tcp://10.0.0.1:25",
        "FORWARDER_TEST": "1",
        "FORWARDER_FAILPOINT": "writer.before-commit:kill",
    }
    assert load(written(tmp_path, 'hostname = "a"'), environ).hostname == "a"


@pytest.mark.parametrize(
    "line",
    [
        'hostname = "mail_1.example.net"',
        'hostname = "192.0.2.1"',
        'hostname = "mx.example.net"\npostmaster = "nobody"',
        'hostname = "mx.example.net"\n[retry]\ndelays = ["1m", "0s"]',
        'hostname = "mx.example.net"\n[retry]\ngive_up_after = "0s"',
        'hostname = "mx.example.net"\n[retry]\nspread = 1.0',
        'hostname = "mx.example.net"\n[srs]\nmax_age_days = 512',
        'hostname = "mx.example.net"\n[workers]\nlease = "0s"',
        'hostname = "mx.example.net"\n[workers]\nprocesses = 100000',
        'hostname = "mx.example.net"\n[logs]\nretention = "0s"',  # is it nothing, or for ever?
        'hostname = "mx.example.net"\n[api]\nbody_limit = 1',
        'hostname = "mx.example.net"\ndata_dir = ""',
        'hostname = "mx.example.net"\ndata_dir = "~/mail"',
        'hostname = "mx.example.net"\ndata_dir = "a\\u0000b"',
    ],
)
def test_what_no_room_could_be_built_from_is_refused_here(tmp_path: Path, line: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load(str(file), {})


def test_the_database_is_in_the_folder_whatever_its_name_means_in_a_url(tmp_path: Path) -> None:
    for folder in ("a%20b", "what?", "q?x=%3F", "a:b@c#d"):
        file = written(tmp_path, f'hostname = "mx1.example.net"\ndata_dir = "{folder}"')
        assert sqlite_path(load(file, {}).database.url) == f"{folder}/forwarder.db"


def test_a_mark_before_the_first_line_is_no_mistake(tmp_path: Path) -> None:
    """U+FEFF, which some editors write and none shows."""
    assert load(written(tmp_path, '\ufeffhostname = "mx1.example.net"'), {}).hostname == "mx1.example.net"


def test_what_to_write_is_said_in_the_words_of_the_file(tmp_path: Path) -> None:
    for line, said in (
        ('[arc]\nenabled = "banana"', "arc.enabled: 'banana' cannot be used; write true or false"),
        ("[arc]\nenabled = [1]", "arc.enabled: cannot be used; write true or false"),
        ('[mx]\nrecipients = "many"', "mx.recipients: 'many' cannot be used; write a whole number"),
        ('[retry]\nspread = "some"', "retry.spread: 'some' cannot be used; write a number"),
    ):
        file = written(tmp_path, f'hostname = "mx1.example.net"\n{line}')
        with pytest.raises(ConfigError) as error:
            load(file, {})
        assert str(error.value) == f"{file}: {said}"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = """
hostname = "a b"
arc = true
[mx]
size_limit = "big"
bare_newline = "keep"
recipients = 0
[tls]
key = "key.pem"
"""
    found = dict(problems(tmp_path, text, FORWARDER_MX__ERRORS="x"))
    assert set(found) == {
        "hostname",
        "arc",
        "mx.size_limit",
        "mx.bare_newline",
        "mx.recipients",
        "FORWARDER_MX__ERRORS",
        "tls",
    }
    assert "'reject' or 'normalize'" in found["mx.bare_newline"]
    assert "certificate and key go together" in found["tls"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@db/mail",
        "postgresql:/me:hunter2@db/mail",
        "me:hunter2@db/mail",
        "postgresql://me:hunter2/mail",
        "host=db password=hunter2",
    ],
)
def test_a_password_in_a_wrong_database_url_is_never_repeated(tmp_path: Path, url: str) -> None:
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[database]\nurl = "{url}"')
    assert key == "database.url"
    assert "hunter2" not in reason
    assert "postgresql://user:password@host" in reason


def test_a_password_in_the_database_url_is_never_repeated(tmp_path: Path) -> None:
    settings = load(
        written(tmp_path, 'hostname = "a"\n[database]\nurl = "postgres://me:hunter2@db/mail"'), {}
    )
    assert settings.database.url == "postgresql://me:hunter2@db/mail"
    assert "hunter2" not in repr(settings)


def test_what_is_no_toml_or_no_file_says_so(tmp_path: Path) -> None:
    assert "TOML" in problems(tmp_path, "hostname = mx1")[0][1]
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path / "missing.toml"), {})


def test_settings_cannot_be_changed() -> None:
    settings = Settings.model_validate({"hostname": "a"})
    with pytest.raises(ValueError, match="frozen"):
        settings.hostname = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ('["127.0.0.1:2525", "[::1]:2526"]', [("127.0.0.1", 2525), ("::1", 2526)]),
        ("127.0.0.1:2525, [::1]:2526", [("127.0.0.1", 2525), ("::1", 2526)]),
        ("[::1]:2526", [("::1", 2526)]),
        ("[]", []),
    ],
)
def test_a_list_in_the_environment_is_json_or_separated_by_commas(
    text: str, hosts: list[tuple[str, int]]
) -> None:
    settings = load(None, {"FORWARDER_HOSTNAME": "mx.example.net", "FORWARDER_MX__LISTEN": text})
    assert [tuple(listener) for listener in settings.mx.listen] == hosts


@pytest.mark.parametrize(
    "url",
    [
        *(
            "mail.example.net",
            "ftp://mail.example.net",
            "https://",
            "https://a b",
            "https://a/?x=1",
            "https://a/#x",
        ),
        *("https://me:hunter2@mail.example.net", "https://mail.example.net:port", "https//mail.example.net"),
        *("https://mail.example.net/v3", "https://mail.example.net/v3/", "https://mail.example.net/api/v3"),
    ],
)
def test_a_public_url_that_leads_nowhere_is_told_here(tmp_path: Path, url: str) -> None:
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[api]\npublic_url = "{url}"')
    assert key == "api.public_url"
    assert "https://mail.example.net" in reason
    assert "hunter2" not in reason


def test_public_urls_that_are_right(tmp_path: Path) -> None:
    for url in (
        "",
        "http://10.0.0.1:8080",
        "https://mail.example.net/forward/",
        "https://mail.example.net/v3x",
        "https://[2001:db8::1]:8443",
    ):
        given = written(tmp_path, f'hostname = "a"\n[api]\npublic_url = "{url}"')
        assert load(given, {}).api.public_url == url


@pytest.mark.parametrize(
    "proxies", ['["*"]', '["proxy.example.net"]', '["10.0.0.1/8"]', '["127.0.0.1", ""]', "[1]"]
)
def test_a_proxy_is_an_address_or_a_network(tmp_path: Path, proxies: str) -> None:
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[api]\ntrusted_proxies = {proxies}')
    assert key == "api.trusted_proxies"
    assert "10.0.0.0/8" in reason


def test_proxies_that_are_right(tmp_path: Path) -> None:
    given = written(tmp_path, 'hostname = "a"\n[api]\ntrusted_proxies = ["127.0.0.1", "2001:DB8::/32"]')
    assert load(given, {}).api.trusted_proxies == ("127.0.0.1", "2001:db8::/32")
    environ = {"FORWARDER_HOSTNAME": "a", "FORWARDER_API__TRUSTED_PROXIES": "10.0.0.0/8, ::1"}
    assert load(None, environ).api.trusted_proxies == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter/2@db/mail",
        "postgresql://me:hunter#2@db/mail",
        "postgresql://me:hunter?2@db/mail",
        "postgresql://me:12/hunter@db/mail",
        "postgresql://me:[hunter@db/mail",
        "postgresql://me:hunter@db:port/mail",
        "sqlite:///:memory:",
        "sqlite:///data/forwarder.db?timeout=1",
    ],
)
def test_a_database_url_that_nobody_can_read_is_told_here(tmp_path: Path, url: str) -> None:
    found = problems(tmp_path, f'hostname = "a"\n[database]\nurl = "{url}"')
    assert [key for key, _ in found] == ["database.url"]
    assert "hunter" not in str(found)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:a%2Fb@db/mail",
        "postgresql://db:5432,other:5433/mail",
        "postgresql://me@[::1]:5432/mail?ssl=x",
    ],
)
def test_database_urls_that_are_right(tmp_path: Path, url: str) -> None:
    assert load(written(tmp_path, f'hostname = "a"\n[database]\nurl = "{url}"'), {}).database.url == url


@pytest.mark.parametrize("value", ["true", "false", "1.0", "1e3", '"7.0"', '"true"', "99999999999999999999"])
@pytest.mark.parametrize(
    "key", ["mx.recipients", "mx.errors", "outbound.port", "plans.default.api", "workers.processes"]
)
def test_a_switch_a_fraction_and_a_number_beyond_all_are_no_count(
    tmp_path: Path, key: str, value: str
) -> None:
    section, _, name = key.rpartition(".")
    ((found, _),) = problems(tmp_path, f'hostname = "a"\n[{section}]\n{name} = {value}')
    assert found == key


def test_a_switch_is_no_share(tmp_path: Path) -> None:
    assert problems(tmp_path, 'hostname = "a"\n[retry]\nspread = false')[0][0] == "retry.spread"
    assert load(written(tmp_path, 'hostname = "a"\n[retry]\nspread = 0'), {}).retry.spread == 0


def test_numbers_in_the_environment_are_whole_too(tmp_path: Path) -> None:
    environ = {"FORWARDER_MX__RECIPIENTS": "200", "FORWARDER_RETRY__SPREAD": "0.2"}
    settings = load(written(tmp_path, 'hostname = "a"'), environ)
    assert (settings.mx.recipients, settings.retry.spread) == (200, 0.2)
    ((found, reason),) = problems(tmp_path, 'hostname = "a"', FORWARDER_MX__RECIPIENTS="7.0")
    assert (found, "whole number" in reason) == ("FORWARDER_MX__RECIPIENTS", True)


def test_a_pool_without_a_connection_for_each_who_may_wait_is_told_so(tmp_path: Path) -> None:
    few, postgres = POOL_LEAST - 1, 'url = "postgresql://forwarder@db/forwarder"'
    ((key, reason),) = problems(tmp_path, f'hostname = "a"\n[database]\n{postgres}\npool_size = {few}')
    assert (key, reason.partition(":")[0]) == ("database", "pool_size must be 5 or more")
    assert POOL_LEAST == LEAST == 5
    for enough in (f"{postgres}\npool_size = {POOL_LEAST}", "pool_size = 1"):  # SQLite has no pool
        load(written(tmp_path, f'hostname = "a"\n[database]\n{enough}'), {})


@pytest.mark.parametrize("names", [("Default",), ("gold", "Gold"), ('""',), ('" "',)])
def test_plans_are_told_apart_by_more_than_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    sections = "".join(f"[plans.{name}]\napi = 1\n" for name in names)
    ((_, reason),) = problems(tmp_path, f'hostname = "a"\n{sections}')
    assert "plan" in reason


@pytest.mark.parametrize(
    "line",
    [
        '[retry]\ngive_up_after = "99999999999d"',
        "[mx]\nsize_limit = 99999999999999999999",
        '[logs]\nretention = "999999d"',
        f'[mx]\nsize_limit = "{"9" * 400} GiB"',
        '[mx]\nlisten = ["127.0.0.1:2525", "127.0.0.1:2525"]',
        '[mx]\nlisten = ["127.0.0.1:8080"]',
        "[mx]\nlisten = 25",
        '[dkim]\nalgorithms = ["rsa", "rsa"]',
    ],
)
def test_what_overflows_or_clashes_is_a_sentence(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used; |write|two listeners"):
        load(written(tmp_path, f'hostname = "a"\n{line}'), {})
