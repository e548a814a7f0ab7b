"""One connection, and the one timer that watches it.

A connection is always in one phase; each has its time, which runs from its beginning: bytes that trickle buy none.

    header    from the connection, or the first byte of a further request, to the end of its head
    body      to the end of its body
    answer    no limit: the number of tokens has one
    write     while the client does not take what is sent
    idle      between two requests
"""

import json
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deepseek_v3.serving.problems import bad_request


class Times(NamedTuple):
    """Seconds of each phase, and how many connections there may be."""

    header: float = 10
    body: float = 30
    answer: float = 0
    write: float = 30
    idle: float = 30
    connections: int = 1000


class WatchedConnection(H11Protocol):
    """uvicorn's connection with the timer; `times` is set by whoever starts the server."""

    times = Times()
    phase, timer, begun = "", None, True  # begun: bytes of a request are awaited by now, not just possible

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        """Begin to watch, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.times.connections:
            transport.abort()
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch no longer."""
        super().connection_lost(exc)
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """See whether a new phase has begun."""
        self.begun = True
        super().data_received(data)
        self.watch()

    def on_response_complete(self) -> None:
        """Be idle, or answer what has come meanwhile."""
        self.begun = False
        super().on_response_complete()
        self._unset_keepalive_if_required()  # its timer; ours serves instead
        self.watch()

    def pause_writing(self) -> None:
        """The client takes nothing."""
        super().pause_writing()
        self.watch()

    def resume_writing(self) -> None:
        """The client takes something again."""
        super().resume_writing()
        self.watch()

    def shutdown(self) -> None:
        """Close when the answer is complete; an answer under way goes on."""
        if self.cycle is None or self.cycle.response_complete:
            super().shutdown()
        else:
            self.cycle.keep_alive = False

    def watch(self) -> None:
        """Set the timer if the phase is another."""
        phase = self.find_phase()
        if phase == self.phase:
            return
        self.phase = phase
        if self.timer is not None:
            self.timer.cancel()
        seconds = getattr(self.times, phase)
        self.timer = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    def find_phase(self) -> str:
        """Say in which phase the connection is."""
        if self.flow.write_paused:
            return "write"
        if self.cycle is None or self.cycle.response_complete:
            return "header" if self.begun else "idle"
        return "body" if self.cycle.more_body else "answer"

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with an error object, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return self.transport.abort()
        body = json.dumps(bad_request(msg).body).encode()
        headers = [("content-type", "application/json"), ("connection", "close"), ("content-length", str(len(body)))]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        return self.transport.close()
