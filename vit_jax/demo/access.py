"""Who may open the page, what they may send, where it listens. Imports nothing heavy."""

import ipaddress
import os
import socket
from pathlib import Path

from vit_jax.errors import UserError

VARIABLE = "VIT_JAX_DEMO_AUTH"
MAX_FILE_BYTES = 20 * 2**20
MAX_REQUEST_BYTES = MAX_FILE_BYTES + 2**20  # a file and the form around it


def read_auth(path=None):
    """Read user names and passwords.

    Args:
      path: a text file with `user:password` per line; None: the environment variable
        VIT_JAX_DEMO_AUTH, in the same format.

    Returns:
      [(user, password)], or None without a file and variable.

    Raises:
      UserError: if the file cannot be read, is empty or malformed.
    """
    if path is None:
        text = os.environ.get(VARIABLE)
        return None if text is None else _parse(text, VARIABLE)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--auth_file={path} cannot be read: {error}") from None
    return _parse(text, f"--auth_file={path}")


def _parse(text, source):
    pairs = []
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        user, _, password = line.partition(":")
        if not user.strip() or not password:
            raise UserError(f"{source}: line {i} must be user:password")
        pairs.append((user.strip(), password))
    if not pairs:
        raise UserError(f"{source} is empty; write one user:password per line")
    return pairs


def check_host(host, auth):
    """Raise UserError if other machines could open the page without a password."""
    if auth is None and not is_loopback(host):
        raise UserError(
            f"--host={host} opens the page to other machines; pass --auth_file=FILE with "
            f"user:password per line, or set {VARIABLE}"
        )


def is_loopback(host):
    """Whether only this machine can reach a server bound to the address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host):
    """Values of the Host header to accept, without port; all for a wildcard address."""
    if host in ("0.0.0.0", "::"):
        return ["*"]
    return ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host]


def free_port(host, port):
    """The port, or any free one for 0. Raises UserError if a server cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host={host} --port={port}: {error.strerror}") from None
        return probe.getsockname()[1]
