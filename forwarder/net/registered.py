"""Registered domains: what somebody owns below a public suffix, by the public suffix list.

DMARC calls it the organisational domain (RFC 7489 3.2): ``mail.example.co.uk`` and ``example.co.uk`` are of one owner,
``example.co.uk`` and ``other.co.uk`` are not. The list is data that comes with a library; nothing is asked for.

Limits: the list is as old as the library. A name that is a public suffix itself is its own.
"""

import functools

from publicsuffixlist import PublicSuffixList


@functools.cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # read once a process: some 20 ms


@functools.lru_cache(maxsize=10_000)
def registered_domain(domain: str) -> str:
    """The registered domain of a lower-case name in A-labels."""
    return _suffixes().privatesuffix(domain) or domain
