"""``gas``, ``python -m gas`` and ``torchrun -m gas``: the command line.

Nothing but this runs before an interrupt is one line: the modules of the commands load inside :func:`main`.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; an interrupt ends in one line and exit code 130 (SIGTERM: 143), also while modules load."""
    code = 130
    try:
        from gas.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted.\n")
    except SystemExit as end:
        if end.code not in (75, 130, 143):
            raise
        code = int(end.code)
    else:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would end with the signal instead of the code where it met the interrupt in a text that a module compiled.
    os._exit(code)


if __name__ == "__main__":
    main()
