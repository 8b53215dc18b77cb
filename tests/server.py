"""A chat endpoint on loopback, in the manner of OpenAI's, whose answers a test decides."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint:
    """Where the server is, and what it was asked.

    Attributes:
        url: base URL for the client.
        requests: bodies of the requests, in the order of their arrival.
        headers: their headers.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, str]], raw: str | None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, said = answer(body)
                message = {"role": "assistant", "content": said}
                reply = {
                    "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                } if status == 200 else {"error": {"message": said}}  # fmt: skip
                data = json.dumps(reply).encode() if raw is None else raw.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that did not wait
                    self.wfile.write(data)

            def log_message(self, *parts: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any]], tuple[int, str]], raw: str | None = None) -> Iterator[Endpoint]:
    """An endpoint that gives ``(status, text)`` for each request body; with ``raw`` these bytes, whatever the text."""
    endpoint = Endpoint(answer, raw)
    threading.Thread(target=endpoint.server.serve_forever, daemon=True).start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def text_of(body: dict[str, Any]) -> str:
    """The text that a request asks about."""
    return str(json.loads(body["messages"][-1]["content"])["text"])
