"""Forwarder: a mail-forwarding engine.

The rooms of the house, from the ground up; each imports only from those above it in this list:

    forwarder.mail      PURE decisions: addresses, aliases, replies, outcomes, retry, SRS, signatures, DSNs.
                        No sockets, SQL, clock or randomness: time and chance are arguments.
    forwarder.config    config.toml and environment -> one frozen Settings value; every default and unit.
    forwarder.store     all SQL and nothing else: group commit, the queue, the directory, the journal.
    forwarder.net       sockets and DNS, no policy: resolver, TLS contexts, one SMTP session, guarded HTTP.
    forwarder.inbound   mail in: the SMTP dialogues of the MX and of submission, limits, screening.
    forwarder.outbound  mail on: dispatcher, delivery, routes, policies of domains, connections, bounces, webhooks.
    api                 the REST face; knows the store, not the mail sides.
    forwarder.serve     the roof: builds every room from Settings; nobody imports it but the roof and the commands.
                        Beside it: process, supervisor, offers, forked and worker (how it lives), preparation, node,
                        keyring, custody, ports, reserved_ports, descriptors, schema (what it stands on), watchdog,
                        pulse, housekeeping, domain_keys, diagnostics, allocator (what keeps it), api_face, web and
                        web_protocol (the API's door).
    forwarder.cli       the commands, each in forwarder.commands; forwarder.demo is one of them.

Who may import whom (``tests/test_architecture.py`` proves it); the cellar, that is
``forwarder.failpoint``, ``clock``, ``errands`` and ``tally``, is open to all but mail, which is pure:

    mail -> standard library, idna, cryptography, re2           config -> mail
    store, net -> mail, config                                  api -> mail, config, store, net
    inbound, outbound -> mail, config, store, net; never each other
    the roof (serve and its rooms, commands) -> everything; imported by nobody

The path of one message (* = durable): ``inbound.server`` accepts and greets; ``inbound.mx`` decides MAIL and
RCPT with ``mail.address`` and ``mail.rules`` over the rule sets of ``store.directory``; DATA is checked by
``mail.content`` and ``inbound.screening``; ``store.queue.enqueue`` * commits message, deliveries and QUEUED events
in one transaction; only then 250. The fresh deliveries, leased to this process, go in memory to
``outbound.dispatcher``; ``outbound.delivery`` signs and sends; ``mail.outcome`` judges the replies;
``store.queue.settle`` * writes DELIVERED, SOFT-BOUNCE with the next attempt, or HARD-BOUNCE with its DSN.
"""

__version__ = "0.1.0"
