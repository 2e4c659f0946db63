"""What bin/run says in Python: reading its settings, and the first request to the server that it starts."""

from __future__ import annotations

import errno
import http
import http.client
import os
import socket
import sys
import time
from urllib.parse import urlsplit

from invites_wsgi.config import SettingsError, load_settings

START_SECONDS = 30.0


def plan(file: str) -> None:
    """Print the host to make a key for, the URL of the API and the database, a line each.

    Exits with one line if the settings are wrong or the address to listen on cannot be had.
    """
    try:
        settings = load_settings(file=file, environ={})
    except SettingsError as error:
        sys.exit(f"bin/run: {error}")
    if settings.listen.startswith("unix:"):
        sys.exit(f"bin/run: {file} says to listen on a socket file; bin/invites-api serve does that")
    address, _, port = settings.listen.rpartition(":")
    check_free(address.strip("[]"), int(port), file)
    # Who listens on all addresses is reached on the local one.
    shown = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(address, address)
    print(next(iter(settings.hosts.listed), "example.com"))
    print(f"http://{shown}:{port}{settings.path}")
    print(settings.database.removeprefix("sqlite:///"))


def check_free(address: str, port: int, file: str) -> None:
    """Exit with one line if a server could not listen here: better said before a key is made than after."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections are still being forgotten is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"bin/run: {address} port {port} is taken: stop what listens there, or change listen in {file}")
        sys.exit(f"bin/run: cannot listen on {address} port {port}: {error.strerror}; change listen in {file}")


def show_first_request(url: str, server: int, key: str) -> None:
    """Wait for the server, make one invite, and print what the server answered.

    Gives up in silence when the server has ended: it has said why itself.
    """
    parts = urlsplit(url)
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(parts.netloc):
        if time.monotonic() > deadline or not is_running(server):
            return
        time.sleep(0.05)
    # http.client, unlike urllib, never sends this to a proxy that the environment names.
    connection = http.client.HTTPConnection(parts.netloc, timeout=START_SECONDS)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()
    lines = [
        "",
        f"A first request, made with this key: GET {url}",
        f"    {answer.status} {http.HTTPStatus(answer.status).phrase}",
    ]
    if location := answer.getheader("Location"):
        lines += [f"    Location: {location}", "Open it in a browser to see what the invited person sees."]
    print("\n".join(lines), end="\n\n", flush=True)


def is_ready(netloc: str) -> bool:
    """Tell whether the server answers, and its database too."""
    connection = http.client.HTTPConnection(netloc, timeout=START_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_running(process: int) -> bool:
    """Tell whether there is a process of this id."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "plan":
        plan(sys.argv[2])
    else:
        show_first_request(sys.argv[2], int(sys.argv[3]), sys.stdin.readline().strip())
