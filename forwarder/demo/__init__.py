"""``forwarder demo``: the whole engine on this machine, real mail through it, and the log as the API shows it.

    peers.py  the outside world: a DNS server and a catching SMTP server, on loopback
    story.py  what happens: set up through the API, mail by a stock client, what arrived and what the log says
    show.py   how it looks in a terminal

Everything is on unprivileged ports of 127.0.0.1 with SQLite in a temporary folder, which is removed at the end; no
root, no network. It ends by itself: exit status 0 when every message arrived as it should, else 1.
"""


def run_demo(*, as_json: bool) -> int:
    """The exit status."""
    import uvloop

    from forwarder.demo.show import Show
    from forwarder.demo.story import tell

    return uvloop.run(tell(Show(as_json=as_json)))
