"""A way to the SuperLink that takes its time: a TCP relay that passes on everything, each way a little later.

The kernel's own delay (``netem``) is not everywhere; ``tbf``, which limits rates, delays nothing of itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Trip:
    """A request that went through, and its answer.

    Parameters
    ----------
    path
        What was asked for.
    began, ended
        When the relay got the first bytes of the request, and when it had passed on the last ones of the
        answer: ``time.monotonic()``; None before that.
    """

    path: str
    began: float
    ended: float | None = None


@dataclass
class Relay:
    """A relay that listens.

    Parameters
    ----------
    address
        ``HOST:PORT`` where it does.
    delay
        Seconds by which everything is late, each way. It may be changed at any time.
    trips
        Requests, in the order in which they came.
    """

    address: str
    delay: float = 0.0
    trips: list[Trip] = field(default_factory=list)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        came: Callable[[bytes], None],
        went: Callable[[], None],
    ) -> None:
        """Pass on one direction of a connection, in order."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                when, data = await due.get()
                await asyncio.sleep(max(0.0, when - time.monotonic()))
                if not data or writer.is_closing():
                    break
                writer.write(data)
                await writer.drain()
                went()
            writer.close()

        with suppress(ConnectionError):
            late = asyncio.create_task(deliver())
            while True:
                data = await reader.read(2**16)
                came(data)
                due.put_nowait((time.monotonic() + self.delay, data))
                if not data:
                    break
            await late

    async def serve(self, host: str, port: int, ready: threading.Event, stop: asyncio.Event) -> None:
        """Serve until it is told to stop.

        Parameters
        ----------
        host, port
            Where everything goes.
        """

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task, own = asyncio.current_task(), list[Trip]()
            assert task is not None
            tasks.add(task)
            theirs, ours = await asyncio.open_connection(host, port)
            writers.extend([writer, ours])

            def asked(data: bytes) -> None:
                if data.startswith((b"POST ", b"GET ")):
                    own.append(Trip(data.split(b" ", 2)[1].decode(), time.monotonic()))
                    self.trips.append(own[-1])

            def answered() -> None:
                if own:
                    own[-1].ended = time.monotonic()

            await asyncio.gather(
                self._pass_on(reader, ours, asked, lambda: None),
                self._pass_on(theirs, writer, lambda data: None, answered),
            )

        tasks, writers = set[asyncio.Task[None]](), list[asyncio.StreamWriter]()
        own_host, _, own_port = self.address.rpartition(":")
        async with await asyncio.start_server(connected, own_host, int(own_port)):
            ready.set()
            await stop.wait()
        for one in writers:
            one.close()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def relay(address: str, host: str, port: int) -> Iterator[Relay]:
    """Have a relay listen at ``HOST:PORT``, for a server on another one, and end it on leaving."""
    made, ready, loop, stop = Relay(address), threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        loop.run_until_complete(made.serve(host, port, ready, stop))
        loop.close()

    thread = threading.Thread(target=run, name="relay")
    thread.start()
    try:
        assert ready.wait(10), "expected a relay that listens"
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
