"""``gas studio``: a local page to compare solvers and to learn them."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from pathlib import Path
from typing import Annotated

import gas
from gas.cli.app import command
from gas.cli.checks import option
from gas.cli.options import Device
from gas.cli.screen import note


@command("gas studio --port 8800")
def studio(
    host: Annotated[
        str, option("Address to listen at; only this machine reaches the default.")
    ] = "127.0.0.1",
    port: Annotated[int, option("Port to listen at.", min=1, max=65535)] = 8800,
    out: Annotated[Path, option("Folder for the solver files that are learned.")] = Path("studio"),
    device: Device = "cpu",
) -> None:
    """Serve a page in the browser: choose a model, compare solvers, learn one, and download its file.

    Nothing is loaded from elsewhere and nothing is reported. Ctrl-C ends it.
    """
    _check_address(host, port)
    home = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise gas.UserError(f"--out {out} cannot be a folder to write in ({home}): name another")
    with gas.studio.page.serve(host, port, out, device) as address:
        note(f": {address}", label="gas studio", style="bold")
        if not _is_loopback(host):
            note("whoever reaches this address can use this machine's processors and read its model folders")
        threading.Event().wait()


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at, before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise gas.UserError(
            f"{host[:80]}:{port} cannot be listened at ({reason}): name another --port or --host"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
