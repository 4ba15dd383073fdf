"""The public names and their signatures, frozen: a change here is a change for every user.

After an intended one: ``PYTHONPATH=src python tests/test_public_api.py > tests/public_api.txt``, and a line in
CHANGELOG.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import gas

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def packages():
    """gas and its public packages, the command line apart: its options have tests of their own."""
    names = [m.name for m in pkgutil.walk_packages(gas.__path__, "gas.") if m.ispkg]
    return ["gas", *(name for name in sorted(names) if not name.startswith("gas.cli"))]


def signature(value):
    if dataclasses.is_dataclass(value):
        return "(" + ", ".join(field.name for field in dataclasses.fields(value) if field.init) + ")"
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", text)


def lines():
    for package in packages():
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.ismodule(value):
                yield f"{package}.{name}"
            else:
                yield f"{package}.{name}{signature(value) if callable(value) else ''}"


def test_the_public_names_are_those_of_the_snapshot():
    assert list(lines()) == SNAPSHOT.read_text().splitlines()


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
