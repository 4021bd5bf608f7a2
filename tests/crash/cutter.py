"""A wire between the engine and PostgreSQL that can be cut: at once, or right after a COMMIT went through."""

import contextlib
import socket
import threading


class Cutter:
    """Passes bytes between a port of 127.0.0.1 and ``target``; ``cut`` closes all links, refused until ``mend``."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._passing: dict[tuple[socket.socket, socket.socket], int] = {}
        self._lock = threading.Lock()
        self._severed = threading.Event()
        self._after_commit = threading.Event()
        self.commits_cut = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._severed.set()
        with self._lock:
            links = list(self._passing)
        for link in links:
            self._end(link)

    def cut_after_commit(self) -> None:
        """The next COMMIT is passed on, its answer is not: the link dies with the outcome unknown."""
        self.commits_cut.clear()
        self._after_commit.set()

    def mend(self) -> None:
        self._after_commit.clear()
        self._severed.clear()

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._severed.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            link = near, far
            with self._lock:
                self._passing[link] = 2
            for watched in (True, False):
                threading.Thread(target=self._pass, args=(link, watched), daemon=True).start()

    def _pass(self, link: tuple[socket.socket, socket.socket], watched: bool) -> None:
        source, sink = link if watched else link[::-1]
        try:
            while data := source.recv(65536):
                if watched and self._after_commit.is_set() and b"COMMIT" in data:
                    self._after_commit.clear()
                    sink.sendall(data)
                    self.commits_cut.set()
                    self.cut()
                    return
                sink.sendall(data)
        except OSError:
            return
        finally:
            self._end(link)
            with self._lock:  # the second of the two threads that passes bytes is the last to look at them
                self._passing[link] -= 1
                last = not self._passing[link]
                if last:
                    del self._passing[link]
            if last:
                for end in link:
                    end.close()

    @staticmethod
    def _end(link: tuple[socket.socket, socket.socket]) -> None:
        for end in link:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
