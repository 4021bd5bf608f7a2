"""Side-by-side measurements: this engine and the stack people glue together for the same job.

``make bench`` runs everything and writes ``benchmarks/results.md``; ``python -m benchmarks --help`` runs parts.
Peer and engine run alternately in one call, on one machine, towards the same sink, loaded by the same source;
only ratios of such runs mean anything, since machines change speed from minute to minute. Nothing is installed:
what is missing is named with the Debian package that holds it.
"""
