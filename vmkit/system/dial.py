"""What ssh(1) runs as its ProxyCommand, with ProxyUseFdpass: open a TCP connection with a congestion control of choice.

    python dial.py ALGORITHM HOST PORT

ssh_config(5): with ProxyUseFdpass the command hands the connected socket over and ends; the traffic does not go through
it. It is run as a file, and so imports nothing of vmkit.
"""

from __future__ import annotations

import socket
import sys


def connect(algorithm: str, host: str, port: int) -> socket.socket:
    """A TCP connection that sends by this algorithm.

    Raises:
        OSError: the kernel does not have it, or nobody answers.
    """
    wrong: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        one = socket.socket(family, kind, protocol)
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
            one.settimeout(10.0)
            one.connect(address)
            one.settimeout(None)
            return one
        except OSError as e:
            one.close()
            wrong = e
    raise wrong or OSError(f"{host} has no address")


def main() -> None:
    """Connect, and hand the socket over to the ssh that runs this."""
    algorithm, host, port = sys.argv[1:4]
    try:
        one = connect(algorithm, host, int(port))
    except OSError as e:
        sys.stderr.write(f"connect to {host} port {port}: {e.strerror or e}\n")
        raise SystemExit(1) from None
    with one, socket.socket(fileno=1) as ssh:
        socket.send_fds(ssh, [b"\0"], [one.fileno()])


if __name__ == "__main__":
    main()
