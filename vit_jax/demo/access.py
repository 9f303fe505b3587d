"""Access control: passwords, hosts, ports and upload limits. Imports nothing heavy."""

import ipaddress
import os
import socket
from pathlib import Path

from vit_jax.errors import UserError

AUTH_VARIABLE = "VIT_JAX_DEMO_AUTH"
MAX_FILE_BYTES = 20 * 2**20
MAX_REQUEST_BYTES = MAX_FILE_BYTES + 2**20  # file and multipart headers


def read_auth(path=None):
    """Read user names and passwords.

    Args:
      path: text file with one `user:password` per line. None: read the environment variable
        VIT_JAX_DEMO_AUTH in the same format.

    Returns:
      [(user, password)], or None if there is neither a file nor the variable.

    Raises:
      UserError: if the file cannot be read, is empty or is malformed.
    """
    if path is None:
        text = os.environ.get(AUTH_VARIABLE)
        return None if text is None else _parse(text, AUTH_VARIABLE)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --auth_file={path}: {error}") from None
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
    """Check that a page reachable from other machines has a password. Raises UserError."""
    if auth is None and not is_loopback(host):
        raise UserError(
            f"--host={host} makes the page reachable from other machines; pass --auth_file=FILE "
            f"with one user:password per line, or set {AUTH_VARIABLE}"
        )


def is_loopback(host):
    """Return whether a server bound to this host is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host):
    """Return the accepted values of the Host header, without port; all for a wildcard address."""
    if host in ("0.0.0.0", "::"):
        return ["*"]
    return ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host]


def free_port(host, port):
    """Return the port, or a free one for port 0. Raises UserError if the port is unavailable."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host={host} --port={port}: {error.strerror}") from None
        return probe.getsockname()[1]
