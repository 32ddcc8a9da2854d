"""``tokenmill`` and ``python -m tokenmill``: the command line, ready for Ctrl-C before it has loaded.

The script begins here and not in ``cli.app``, which takes a while to import. The top of this file, of ``tokenmill`` and
of ``tokenmill.core`` imports nothing: what it takes cannot be interrupted quietly.
"""

from __future__ import annotations

INTERRUPTED = 130


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        import signal

        # where the shell has it ignored, as behind `nohup`, it stays so
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:
            signal.signal(signal.SIGINT, _leave)
        from tokenmill.cli.app import main as run

        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED


def _leave(number: int, frame: object) -> None:
    """While modules load there is nothing to put in order, and the import system swallows an exception now and then."""
    import os

    os._exit(INTERRUPTED)


if __name__ == "__main__":
    raise SystemExit(main())
