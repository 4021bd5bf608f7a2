"""The commands, a file each; ``forwarder.cli`` puts them together.

Every command is a function of its options that may raise ``Failure`` or one of the engine's own errors; what is
expected to go wrong ends in one sentence and an exit status, never in a traceback. Heavy rooms are imported inside
the functions, so that ``forwarder --help`` is quick.
"""
