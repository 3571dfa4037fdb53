"""A web service of the standard library that says which release of it answers.

GET /        a greeting, with the release and the instance that gave it
GET /health  is the process alive?
GET /ready   should it get requests? No, from the moment it is asked to stop
POST /echo   the body that was sent
"""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RELEASE = os.environ.get("KILN_RELEASE", "no release")
INSTANCE = os.environ.get("KILN_INSTANCE", "no instance")
GREETING = os.environ.get("GREETING", "Hello")
LARGEST_BODY = 16 * 1024 * 1024

stopping = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    timeout = 75

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/":
            self.answer(200, f"{GREETING} from {RELEASE} ({INSTANCE})\n".encode())
        elif path == "/health":
            self.answer(200, b"alive\n")
        elif path == "/ready":
            self.answer(503 if stopping.is_set() else 200, b"stopping\n" if stopping.is_set() else b"ready\n")
        else:
            self.answer(404, b"not found\n")

    def do_POST(self):
        if self.path.partition("?")[0] != "/echo":
            self.close_connection = True  # the body was not read
            self.answer(404, b"not found\n")
            return
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = self.read_chunks()
        else:
            length = self.headers.get("Content-Length", "0")
            body = self.rfile.read(int(length)) if length.isdigit() and int(length) <= LARGEST_BODY else None
        if body is None:
            self.close_connection = True
            self.answer(413, b"too large\n")
        else:
            self.answer(200, body, self.headers.get("Content-Type", "application/octet-stream"))

    def read_chunks(self):
        body = bytearray()
        while True:
            size = int(self.rfile.readline(64).partition(b";")[0], 16)
            if len(body) + size > LARGEST_BODY:
                return None
            body += self.rfile.read(size)
            self.rfile.readline(8)
            if size == 0:
                return bytes(body)

    def answer(self, status, body, kind="text/plain; charset=utf-8"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Release", RELEASE)
        if self.close_connection or stopping.is_set():
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *args):
        if self.path not in ("/ready", "/health"):
            print(f"{self.address_string()} {form % args}", flush=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True  # a connection that is kept idle must not hold up the end

    def __init__(self, address):
        super().__init__(address, Handler)
        self.busy = 0
        self.changed = threading.Condition()

    def wait_idle(self, seconds):
        """True when nothing is in flight any more."""
        with self.changed:
            return self.changed.wait_for(lambda: self.busy == 0, seconds)


def counted(method):
    """Counts a request from its head to the last byte of its answer."""

    def handle(self):
        with self.server.changed:
            self.server.busy += 1
        try:
            method(self)
        finally:
            with self.server.changed:
                self.server.busy -= 1
                self.server.changed.notify_all()

    return handle


Handler.do_GET = counted(Handler.do_GET)
Handler.do_POST = counted(Handler.do_POST)


def main():
    server = Server(("0.0.0.0", int(os.environ.get("PORT", "3000"))))

    def stop(*_):
        stopping.set()
        # shutdown() waits for the accept loop, which runs in this very thread.
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"{RELEASE} listens on port {server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.1)
    if not server.wait_idle(25):
        print("requests were still in flight", file=sys.stderr, flush=True)
        return 1
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
