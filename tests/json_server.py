"""HTTP servers on the loopback interface that read and write JSON."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any]]
"""Status and content."""


class JsonHandler(BaseHTTPRequestHandler):
    """A handler says what it replies to a POST, given what was sent, and to a GET. None drops the connection."""

    def post(self, body: dict[str, Any]) -> Reply | None:
        return 404, {"detail": "Not Found"}

    def get(self) -> Reply | None:
        return 404, {"detail": "Not Found"}

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send(self.post(json.loads(content) if content else {}))

    def do_GET(self) -> None:
        self._send(self.get())

    def _send(self, reply: Reply | None) -> None:
        if reply is None:
            self.close_connection = True
            self.connection.close()
            return
        content = json.dumps(reply[1]).encode()
        self.send_response(reply[0])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


def start_server(handler: type[JsonHandler]) -> ThreadingHTTPServer:
    """A running server, which the caller ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
