"""
`python -m gear_plugin` is `gear`, and so is the console script.

An interrupt while the rest is being imported, which takes up to a second, ends
the process as the system ends it, not with a traceback of the imports.
"""

import signal

_IS_OURS = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored (nohup)
if _IS_OURS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from gear_plugin.cli import entry as _entry  # noqa: E402


def entry() -> None:
    """Run the command; it answers interrupts itself."""
    if _IS_OURS:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _entry()


if __name__ == "__main__":
    entry()
