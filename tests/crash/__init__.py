"""The crash harness: kill the engine under load, then let an independent ledger say whether a promise was broken.

Nothing in this folder imports the engine or the libraries it stands on; it speaks SMTP on raw sockets,
reads RFC 3464 reports with a reader of its own, and writes what it saw with fsync before it acts on it.

    ledger.py    what was sent, acknowledged, delivered, returned, and when things were killed; the verdict
    client.py    sends numbered messages and writes each step down
    sink.py      the destination and the senders' mailboxes; misbehaves by address; records before its 250
    bounces.py   reads delivery status notifications
    node.py      starts, kills, stops and drains engine processes
    nursery.py   forks them from a process that has imported the engine; the only file here that names it
    cutter.py    stands between the engine and PostgreSQL and cuts the link when told
    power.py     what a power cut would have left of the files, from recorded system calls
    campaign.py  load, deaths, recovery, verdict
    points.py    a death at every named point
    __main__.py  ``make crash KILLS=10000``
"""
