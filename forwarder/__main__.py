"""``forwarder``, and ``python -m forwarder``.

Loading the commands takes a tenth of a second, on a busy machine more. Ctrl-C meanwhile ends the process as the signal
does by itself, without a traceback; from then on it is the command's to handle. SIGHUP, which tells ``serve`` to
reload, says nothing to one that is only starting; systemd would take an end by it for one that was wanted.
"""

import signal
import sys


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # False where Ctrl-C is ignored, as a shell has it for what runs in the background.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from forwarder.cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
