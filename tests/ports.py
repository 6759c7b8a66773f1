"""Ports for servers that tests start."""

from __future__ import annotations

import socket

_reserved: list[socket.socket] = []


def reserved_port(host: str = "127.0.0.1") -> socket.socket:
    """A bound socket that does not listen: nobody else gets its port, and nobody answers there.

    A server that allows to reuse its address, as Python's do, can listen on the port all the same.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((host, 0))
    return reserved


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is reserved as long as these tests run."""
    reserved = reserved_port(host)
    _reserved.append(reserved)
    port: int = reserved.getsockname()[1]
    return port
