"""gunicorn's arbiter and worker, made to lose no request when they are told to reload or to stop.

Left alone gunicorn loses some. With SO_REUSEPORT each of its workers has a listening socket of its own, and the
connections that wait in it are reset when that worker ends; a worker that is told to stop while it is being forked
misses it, and is killed 30 seconds later; and new settings that are wrong take the whole service down. Here the
arbiter holds the sockets and lends each worker one, signals wait until the worker can take them, and settings are
looked at before any worker is replaced.
"""

from __future__ import annotations

import collections
import signal
import socket
import sys
from types import FrameType
from typing import Any, Final

from gunicorn.arbiter import Arbiter as GunicornArbiter
from gunicorn.sock import TCP6Socket, TCPSocket

from invites_wsgi import gunicorn_greenlets
from invites_wsgi.gunicorn_connections import WaitingWorker
from invites_wsgi.gunicorn_threads import StayingWorker

__all__ = ["Arbiter", "GreenletWorker", "ThreadWorker", "lend_listener"]

STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class _StopWasAsked(Exception):
    """Somebody wants the service to stop while it waits for old workers to end."""


class Arbiter(GunicornArbiter):
    """Starts workers, and replaces and stops them without losing a request."""

    LISTENERS: list[Any]  # type: ignore[misc]  # gunicorn assigns it to the instance, too
    app: Any
    log: Any

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._is_reloading = False
        self._is_to_stop = False

    def start(self) -> None:
        """Listen before the first worker is there: what connects meanwhile waits for it."""
        addresses = [address for address in self.cfg.address if isinstance(address, tuple)]
        if addresses and not self.LISTENERS:
            # The kernel spreads connections over the sockets. One that all workers share can put most connections on
            # one of them, and halves the rate. Other systems do not spread: there, one for all.
            count = self.cfg.workers if sys.platform == "linux" else 1
            self.LISTENERS = [self._listen(address) for address in addresses for _ in range(count)]
        super().start()

    def _listen(self, address: Any) -> Any:
        """Return one of several listening sockets on an address."""
        is_ipv6 = ":" in address[0]
        made = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(address)
        except BaseException:
            made.close()
            raise
        return (TCP6Socket if is_ipv6 else TCPSocket)(address, self.cfg, self.log, fd=made.detach())

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Queue a signal, and remember that it asks for the end."""
        self._is_to_stop = self._is_to_stop or sig in STOPPING
        super().signal(sig, frame)

    def spawn_worker(self) -> Any:
        """Fork a worker, which takes signals once it has its own handlers.

        Until then it has the arbiter's, which would only put them into a queue that nobody reads in the worker.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def reload(self) -> None:
        """Read the settings anew and replace the workers; where that cannot work, say why and go on as before."""
        if not self.app.renew():
            return
        self._is_reloading = True
        try:
            super().reload()
        except _StopWasAsked:
            pass
        finally:
            self._is_reloading = False

    def reap_workers(self) -> None:
        """Collect workers that have ended; a reload that waits for them is cut short by a signal to stop."""
        super().reap_workers()
        if self._is_reloading and self._is_to_stop:
            raise _StopWasAsked

    def handle_ttin(self) -> None:
        """Leave the number of workers as it is: a socket without a worker would let connections wait forever."""
        self.log.warning("the number of processes is http.workers in the settings; signal ignored")

    handle_ttou = handle_ttin

    def handle_usr2(self) -> None:
        """Start no second service beside this one: it would find the address taken."""
        self.log.warning("to change to another version, restart the service; signal ignored")


class _LentWorker(WaitingWorker):
    """A worker that answers all who have connected before it ends."""

    others: tuple[Any, ...] = ()
    """The listening sockets of the other workers, which came with the fork."""
    _has_left = False

    def init_process(self) -> None:
        """Let go of the sockets of others: as long as anybody has one, it takes connections."""
        for one in self.others:
            one.close()
        super().init_process()

    def init_signals(self) -> None:
        """Set the handlers, and take the signals that came since the fork."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """Start or stop accepting; at the end also accept who is connected already, and refuse all others from then on.

        Closing a listening socket resets the connections in it. After a reload the socket lives on in the arbiter, and
        the worker that comes after this one goes on with it.
        """
        super().set_accept_enabled(enabled)
        if enabled or self.alive or self._has_left:
            return
        self._has_left = True
        for listener in self.sockets:
            while self.nr_conns < self.worker_connections and self.accept_one(listener):
                pass
            listener.close()
        self.hurry_pending()


class GreenletWorker(_LentWorker, gunicorn_greenlets.GreenletWorker):
    """The worker for an app that never keeps a thread waiting."""


class ThreadWorker(_LentWorker, StayingWorker):
    """The worker for any other app."""


def lend_listener(arbiter: Any, worker: Any) -> None:
    """Give a worker that is about to be forked the socket that the fewest have; for gunicorn's ``pre_fork``."""
    listeners = arbiter.LISTENERS
    taken = collections.Counter(id(one) for other in arbiter.WORKERS.values() for one in other.sockets)
    own = min(listeners, key=lambda one: taken[id(one)])
    worker.sockets = [own]
    worker.others = tuple(one for one in listeners if one is not own)
