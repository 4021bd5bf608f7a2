"""The DNS records of a hosted domain: what to publish, and whether what is there is right."""

import pytest

from forwarder.mail.records import (
    KeyRecord,
    dkim_target,
    dmarc_records,
    first_mail_hosts,
    key_fault,
    merge_spf,
    provider,
    records_to_publish,
    spf_includes,
    spf_records,
    zone_of_keys,
)

HOST = "mx.forwarder.test"
OURS = f"include:{HOST}"
KEYS = (
    KeyRecord(selector="fwd1", public_record="v=DKIM1; k=rsa; p=MIIB"),
    KeyRecord(selector="fwd2", public_record="v=DKIM1; k=ed25519; p=11qY"),
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, f"v=spf1 {OURS} ~all"),
        ("v=spf1 mx \x1b]0;title\x1b\\ -all", f"v=spf1 {OURS} ~all"),
        ("v=spf1 include:someservice.org ~all", f"v=spf1 include:someservice.org {OURS} ~all"),
        ("v=spf1 -all", f"v=spf1 {OURS} -all"),
        ("v=spf1 mx a:x.org ?ALL", f"v=spf1 mx a:x.org {OURS} ?ALL"),
        ("v=spf1 mx", f"v=spf1 mx {OURS}"),
        ("v=spf1 redirect=_spf.x.org", f"v=spf1 {OURS} redirect=_spf.x.org"),
        ("v=spf1 -all exp=e.x.org", f"v=spf1 {OURS} -all exp=e.x.org"),
        (f"v=spf1  {OURS}  ~all", f"v=spf1  {OURS}  ~all"),
        (f"V=SPF1 +{OURS.upper()} ~all", f"V=SPF1 +{OURS.upper()} ~all"),
        (f"v=spf1 ~all {OURS}", f"v=spf1 {OURS} ~all {OURS}"),
        (f"v=spf1 mx -{OURS} ~all", f"v=spf1 mx {OURS} ~all"),
        (f"v=spf1 ?{OURS}. mx {OURS} ~all", f"v=spf1 {OURS} mx {OURS} ~all"),
        (f"v=spf1 {OURS}.evil.org ~all", f"v=spf1 {OURS}.evil.org {OURS} ~all"),
    ],
)
def test_our_include_is_merged_and_the_rest_kept(found: str | None, expected: str) -> None:
    assert merge_spf(found, HOST) == expected
    assert merge_spf(expected, HOST) == expected


@pytest.mark.parametrize(
    ("record", "there"),
    [
        (f"v=spf1 {OURS} -all", True),
        (f"v=spf1 {OURS}. -all", True),
        (f"v=spf1 ?{OURS} -all", False),
        (f"v=spf1 ?{OURS} {OURS} -all", False),  # RFC 7208 4.6.2: the first that matches decides
        (f"v=spf1 {OURS} ?{OURS} -all", True),
        (f"v=spf1 -all {OURS}", False),
        (f"v=spf1 include:x.{HOST} -all", False),
        ("v=spf1", False),
    ],
)
def test_our_include_counts_before_all_and_with_a_pass(record: str, there: bool) -> None:
    assert spf_includes(record, HOST) is there


def test_spf_and_dmarc_are_found_among_other_texts() -> None:
    texts = [
        "v=spf10 x",
        "v=spf1",
        "V=SPF1 mx",
        "google-site-verification=v=spf1 ",
        "v=DMARC1; p=none",
        "v=DMARC12",
        "v=dmarc1; p=reject",
        "v = DMARC1; p=none",
    ]
    assert spf_records(texts) == ["v=spf1", "V=SPF1 mx"]
    assert dmarc_records(texts) == ["v=DMARC1; p=none", "v = DMARC1; p=none"]  # as mail is judged by them


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ([], set()),
        ([(10, HOST)], {HOST}),
        ([(10, HOST.upper() + ".")], {HOST}),
        ([(20, HOST), (10, "a.org")], {"a.org"}),
        ([(10, HOST), (10, "a.org"), (30, "b.org")], {HOST, "a.org"}),
        ([(0, "")], {""}),
    ],
)
def test_the_most_preferred_mx_decides(found: list[tuple[int, str]], first: set[str]) -> None:
    assert first_mail_hosts(found) == first


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ("v=DKIM1; k=rsa; p=MIIB", ""),
        ("v=DKIM1;p=MI IB;k=rsa;", ""),
        ("p=MIIB", ""),
        ("v=DKIM1; k=RSA; h=sha1:sha256; s=email; t=y; p=MIIB", ""),
        ("v=DKIM1; k=rsa; p=MIIC", "another key"),
        ("v=DKIM1; k=ed25519; p=MIIB", "another key"),
        # dkimpy and opendkim take none of these
        ("v=DKIM1; k=rsa; p=", "revoked"),
        ("v=DKIM2; p=MIIB", "not a DKIM key record"),
        ("v=DKIM1; k=rsa; p=MIIB;;", "malformed"),
        ('"v=DKIM1; k=rsa; p=MIIB"', "malformed"),
        ("v=DKIM1; s=tlsrpt; p=MIIB", "not for mail"),
        ("v=DKIM1; h=sha1; p=MIIB", "sha256"),
        ("", "holds no key"),
    ],
)
def test_a_published_key_is_judged_as_receivers_read_it(found: str, fault: str) -> None:
    said = key_fault([found], "v=DKIM1; k=rsa; p=MIIB")
    assert fault in said
    assert bool(said) is bool(fault)


def test_a_key_stands_alone() -> None:
    right = "v=DKIM1; k=rsa; p=MIIB"
    assert key_fault([], right) == "no key stands"
    for texts in ([right, "v=DKIM1; k=rsa; p=MIIC"], ["v=spf1 -all", right], [right, right]):
        assert key_fault(texts, right) == "2 TXT records stand"


def test_records_to_paste_as_cname_or_txt() -> None:
    shown = [(r.kind, r.name, r.value) for r in records_to_publish("a.com", HOST, KEYS, as_txt=False)]
    assert shown == [
        ("MX", "a.com", HOST),
        ("TXT", "a.com", f"v=spf1 {OURS} ~all"),
        ("CNAME", "fwd1._domainkey.a.com", f"fwd1._domainkey.a.com.{HOST}"),
        ("CNAME", "fwd2._domainkey.a.com", f"fwd2._domainkey.a.com.{HOST}"),
        ("TXT", "_dmarc.a.com", "v=DMARC1; p=none;"),
    ]
    shared = records_to_publish("a.com", HOST, KEYS, as_txt=False, spf_of="svc.test")
    assert [(r.purpose, r.value) for r in shared][:2] == [
        ("mx", HOST),
        ("spf", "v=spf1 include:svc.test ~all"),
    ]
    as_txt = records_to_publish("a.com", HOST, KEYS, as_txt=True)
    assert [(r.kind, r.value) for r in as_txt if r.purpose == "dkim1"] == [("TXT", "v=DKIM1; k=rsa; p=MIIB")]
    ours = [(r.name, r.value) for r in zone_of_keys("a.com", HOST, KEYS)]
    assert ours == [(f"{key.selector}._domainkey.a.com.{HOST}", key.public_record) for key in KEYS]


def test_a_name_too_long_for_the_dns_has_no_cname() -> None:
    domain = ".".join(["a" * 60] * 4)
    assert dkim_target(domain, "fwd1", HOST) is None
    records = records_to_publish(domain, HOST, KEYS, as_txt=False)
    assert {record.kind for record in records if record.purpose.startswith("dkim")} == {"TXT"}


@pytest.mark.parametrize(
    ("servers", "who"),
    [
        (["amy.ns.cloudflare.com.", "bob.ns.cloudflare.com"], "cloudflare"),
        (["ns-1.awsdns-12.co.uk"], "aws"),
        (["ns1-07.azure-dns.com"], "azure"),
        (["NS01.DOMAINCONTROL.COM"], "godaddy"),
        (["ns1.notcloudflare.com"], None),
        (["cloudflare.com.evil.org"], None),
        ([], None),
    ],
)
def test_the_provider_is_known_by_its_name_servers(servers: list[str], who: str | None) -> None:
    assert provider(servers) == who
