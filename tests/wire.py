"""A network between client and server that a test can break: one TCP hop on 127.0.0.1."""

from __future__ import annotations

import enum
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from tests.servers import free_port

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
#: Bytes held for a side that does not read; beyond that the other side is made to wait, as a network would.
_FULL = 1024 * 1024
# Closing a socket that lingers for 0 seconds sends RST in place of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _State(enum.Enum):
    WHOLE = enum.auto()
    CUT = enum.auto()
    FROZEN = enum.auto()
    REPLIES_LOST = enum.auto()
    CLOSED = enum.auto()


class _Link:
    """One client's connection through the wire: two sockets, and the bytes under way."""

    def __init__(self, client: socket.socket, client_port: int, server_address: tuple[str, int]) -> None:
        self.client = client
        self.client_port = client_port
        self.frozen = False
        self.server = socket.socket()
        for side in (self.client, self.server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connect_ex(server_address)
        self.connecting = True
        self.under_way = {self.client: bytearray(), self.server: bytearray()}
        self.lost_bytes = False
        self.ended_by: socket.socket | None = None

    def other(self, side: socket.socket) -> socket.socket:
        return self.server if side is self.client else self.client

    def wanted(self, side: socket.socket) -> int:
        """Return the selector's events that this side waits for."""
        events = 0
        if self.ended_by is None and len(self.under_way[self.other(side)]) < _FULL:
            events |= selectors.EVENT_READ
        if self.under_way[side] or (side is self.server and self.connecting):
            events |= selectors.EVENT_WRITE
        return events

    def close(self, *, reset: bool) -> None:
        for side in (self.client, self.server):
            if reset:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.close()


class Wire:
    """Passes bytes between the clients of `port` and one server, until it is told to break.

    Each of `cut`, `freeze`, `drop_replies` and `mend` returns when it is in force. They may be called from any thread.
    One thread does the work; it is gone after `close`.
    """

    host = HOST

    def __init__(self, port: int, host: str = HOST) -> None:
        """Listen on a free port for clients of the server at ``host:port``, which need not be up."""
        self._server_address = (host, port)
        self._state = _State.WHOLE
        self._links: set[_Link] = set()
        self._freezes: Callable[[int], bool] = bool
        self.port = free_port()
        self._listener = _bound(self.port)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_up, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._one_caller = threading.Lock()
        self._in_force = threading.Event()
        self._asked = _State.WHOLE
        self._thread = threading.Thread(target=self._run, name=f"wire-{self.port}", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._become(_State.CUT)

    def lead_to(self, port: int) -> None:
        """Lead whoever connects from now on to another server of the host, as a name does that is given to another."""
        self._server_address = (self._server_address[0], port)

    def freeze(self, only: Callable[[int], bool] = lambda client_port: True) -> None:
        """Keep connections and take new ones, and pass no byte either way: a black hole.

        Args:
            only: For whose connections, told by the client's port; called in the wire's own thread.
        """
        self._freezes = only
        self._become(_State.FROZEN)

    def drop_replies(self) -> None:
        """Pass what clients send; what the server answers is lost."""
        self._become(_State.REPLIES_LOST)

    def mend(self) -> None:
        """Work again. A connection that has lost bytes is reset: TCP never goes on behind a gap."""
        self._become(_State.WHOLE)

    def close(self) -> None:
        """End every connection and the thread; twice is no error."""
        if self._thread.is_alive():
            self._become(_State.CLOSED)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _become(self, state: _State) -> None:
        with self._one_caller:
            self._in_force.clear()
            self._asked = state
            self._wake_up.send(b"!")
            if not self._in_force.wait(10):
                raise TimeoutError(f"the wire on port {self.port} did not become {state.name}: its thread has ended")

    # All below runs in the wire's own thread.

    def _run(self) -> None:
        try:
            while self._state is not _State.CLOSED:
                self._listen_for_what_matters()
                for key, events in self._selector.select():
                    self._serve(key, events)
        finally:
            for link in list(self._links):
                self._drop(link)
            self._selector.close()
            for sock in (self._listener, self._wake_up, self._woken):
                sock.close()

    def _listen_for_what_matters(self) -> None:
        for link in self._links:
            for side in (link.client, link.server):
                wanted = 0 if link.frozen else link.wanted(side)
                registered = self._selector.get_map().get(side)
                if registered is None:
                    if wanted:
                        self._selector.register(side, wanted, link)
                elif not wanted:
                    self._selector.unregister(side)
                elif wanted != registered.events:
                    self._selector.modify(side, wanted, link)

    def _serve(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._woken:
            self._woken.recv(_CHUNK)
            self._enter(self._asked)
        elif key.fileobj is self._listener:
            self._accept()
        elif key.data in self._links and not key.data.frozen:
            assert isinstance(key.fileobj, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    self._write(key.data, key.fileobj)
                if events & selectors.EVENT_READ:
                    self._read(key.data, key.fileobj)
            except BlockingIOError:
                return
            except OSError:
                self._drop(key.data)
            else:
                self._finish(key.data)

    def _enter(self, state: _State) -> None:
        was, self._state = self._state, state
        for link in self._links:
            link.frozen = state is _State.FROZEN and self._freezes(link.client_port)
        if state is _State.CUT:
            for link in list(self._links):
                self._drop(link)
            self._replace_listener()
        elif was is _State.CUT and state is not _State.CLOSED:
            self._listener.listen()
            self._selector.register(self._listener, selectors.EVENT_READ)
        if state is _State.WHOLE:
            for link in [link for link in self._links if link.lost_bytes]:
                self._drop(link)
        self._in_force.set()

    def _replace_listener(self) -> None:
        """A bound socket that does not listen refuses connections, and keeps the port for `mend`."""
        if self._listener in self._selector.get_map():
            self._selector.unregister(self._listener)
        # Bound before the other is closed: a port that is free for a moment may be somebody else's in the next.
        listening, self._listener = self._listener, _bound(self.port)
        listening.close()

    def _accept(self) -> None:
        try:
            client, (_, client_port) = self._listener.accept()
        except OSError:  # It hung up while it waited, or the wire was cut in this very round.
            return
        link = _Link(client, client_port, self._server_address)
        link.frozen = self._state is _State.FROZEN and self._freezes(client_port)
        self._links.add(link)

    def _read(self, link: _Link, side: socket.socket) -> None:
        data = side.recv(_CHUNK)
        if not data:
            link.ended_by = side
        if side is link.server and self._state is _State.REPLIES_LOST:
            link.lost_bytes = True
        else:
            link.under_way[link.other(side)] += data

    def _write(self, link: _Link, side: socket.socket) -> None:
        if side is link.server and link.connecting:
            error = side.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "the server refused the connection")
            link.connecting = False
        waiting = link.under_way[side]
        if waiting:
            del waiting[: side.send(waiting)]

    def _finish(self, link: _Link) -> None:
        """Once one side has hung up and the other has had what was under way to it, both are closed.

        A server's hang-up behind lost bytes is lost with them.
        """
        if link.ended_by is None or (link.ended_by is link.server and link.lost_bytes):
            return
        if not link.under_way[link.other(link.ended_by)]:
            self._drop(link, reset=False)

    def _drop(self, link: _Link, *, reset: bool = True) -> None:
        self._links.discard(link)
        for side in (link.client, link.server):
            if side in self._selector.get_map():
                self._selector.unregister(side)
        link.close(reset=reset)


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    sock.setblocking(False)
    return sock
