"""A solver's name as a file may have it."""

from __future__ import annotations

import re

__all__ = ["slug"]


def slug(spec: str) -> str:
    """Return a name that every file system takes; names of solvers that differ stay different.

    >>> slug("unipc-3-bh2/log_snr"), slug("gs@uniform")
    ('unipc-3-bh2+log_snr', 'gs=uniform')
    """
    return re.sub(r"[^A-Za-z0-9._-]", lambda found: {"/": "+", "@": "="}.get(found[0], "%"), spec)
