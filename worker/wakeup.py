"""What wakes a thread that sleeps in a selector: signals, the ends of child processes, other threads."""

import contextlib
import signal
import socket
from collections.abc import Callable, Mapping


class Wakeup:
    """Readable, for a selector, once something has happened since `clear`."""

    def __init__(self) -> None:
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)

    def fileno(self) -> int:
        """What a selector watches."""
        return self._woken.fileno()

    def listen(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Wakes on these signals, blocked or not until now, and on the end of any child. In the main thread only."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number, handler in handlers.items():
            signal.signal(number, lambda *_, handler=handler: handler())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(handlers))

    def wake(self) -> None:
        """Wakes the sleeper, from any thread."""
        # Full means that it has been woken often enough.
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def clear(self) -> None:
        """Forgets what has happened so far: to be called before looking for it."""
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
