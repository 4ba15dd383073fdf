"""``gas``, ``python -m gas`` and ``torchrun -m gas``: the command line.

Nothing but this runs before an interrupt is one line: the modules of the commands load inside :func:`main`.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from gas.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted.\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
