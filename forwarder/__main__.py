"""``forwarder``, and ``python -m forwarder``.

Loading the commands takes a tenth of a second, on a busy machine more. Ctrl-C meanwhile ends the process as the signal
does by itself, without a traceback; from then on it is the command's to handle.
"""

import signal


def main() -> None:
    """The console script."""
    # Else somebody has it ignored, as a shell has for what runs in the background.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from forwarder.cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
