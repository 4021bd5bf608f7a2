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
        self._links: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._severed = threading.Event()
        self._after_commit = threading.Event()
        self.commits_cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._severed.set()
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            for end in link:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut_after_commit(self) -> None:
        """The next COMMIT is passed on, its answer is not: the link dies with the outcome unknown."""
        self.commits_cut.clear()
        self._after_commit.set()

    def mend(self) -> None:
        self._after_commit.clear()
        self._severed.clear()

    def close(self) -> None:
        self.cut()
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
            with self._lock:
                self._links.add((near, far))
            for source, sink, watched in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, sink, watched), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, watched: bool) -> None:
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
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
