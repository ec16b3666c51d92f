"""A TCP relay before the server, which can leave new connections without an answer."""

import select
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

ANSWER_TIME = 0.3  # seconds in which the loopback interface answers, if anybody does


class Relay:
    """It passes on what comes to a port of 127.0.0.1, in both directions."""

    def __init__(self, url):
        self._server = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._others = {}  # The socket to which each one's bytes go.
        self._unanswered = []
        self._is_listening = True
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

        credentials = self._server.netloc.rpartition("@")[0]
        self.port = self._listener.getsockname()[1]
        self.url = self._server._replace(
            netloc=f"{credentials}@127.0.0.1:{self.port}"
        ).geturl()

    def _run(self):
        while not self._is_over:
            sockets = list(self._others)
            if self._is_listening:
                sockets.append(self._listener)
            for ready in select.select(sockets, [], [], 0.02)[0]:
                if ready is self._listener:
                    self._accept()
                elif ready in self._others:
                    self._relay(ready)

    def _accept(self):
        client = self._listener.accept()[0]
        server = socket.create_connection((self._server.hostname, self._server.port))
        self._others[client] = server
        self._others[server] = client

    def _relay(self, source):
        data = b""
        with suppress(OSError):
            data = source.recv(65536)
        if data:
            self._others[source].sendall(data)
            return
        target = self._others.pop(source)
        del self._others[target]
        source.close()
        target.close()

    def swallow_new_connections(self):
        """Answer no new connection from now on; the old ones are relayed on.

        A full backlog drops a SYN, as a firewall does.
        """
        self._is_listening = False
        while True:
            connection = socket.socket()
            self._unanswered.append(connection)
            connection.settimeout(ANSWER_TIME)
            try:
                connection.connect(("127.0.0.1", self.port))
            except TimeoutError:
                return

    def close(self):
        self._is_over = True
        self._thread.join()
        for each in [self._listener, *self._others, *self._unanswered]:
            each.close()
