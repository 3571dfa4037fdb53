"""The service under load: every answer names its release and can be checked byte by byte.

    GET  /            "RELEASE ok"
    GET  /health, /ready
    GET  /slow?ms=N   "slow N", after N milliseconds
    GET  /large?kb=N  N KiB in chunks, then a line with their CRC-32
    POST /echo        the body as it came
    GET  /env?name=N  the value of one variable

HTTP/1.1 on asyncio's streams by hand: an order of magnitude more requests for each CPU second than
http.server, so that the load measures the proxy and not this file.
"""

import asyncio
import os
import signal
import zlib

RELEASE = os.environ.get("KILN_RELEASE", "bench@0")
PORT = int(os.environ.get("PORT", "3000"))
TEXT = "text/plain; charset=utf-8"
MAX_BODY = 16 * 1024 * 1024


class Stopping:
    """Counts what is in flight, so that a stop can wait for it."""

    def __init__(self):
        self.asked = asyncio.Event()
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self):
        self.in_flight += 1
        self.idle.clear()

    def end(self):
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle.set()


def head(status, length=None, close=False):
    lines = [f"HTTP/1.1 {status}", f"X-Release: {RELEASE}", f"Content-Type: {TEXT}"]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    if close:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def query_number(query, name, most):
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key == name and value.isdigit():
            return min(int(value), most)
    return None


async def read_body(reader, headers):
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = bytearray()
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size == 0:
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return bytes(body)
            if len(body) + size > MAX_BODY:
                raise ValueError("body too large")
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    length = int(headers.get("content-length", "0"))
    if length > MAX_BODY:
        raise ValueError("body too large")
    return await reader.readexactly(length)


async def large(writer, kib, close):
    writer.write(head("200 OK", close=close))
    total = 0
    for first in range(0, kib, 16):
        chunk = b"".join(b"%08d" % n * 128 for n in range(first, min(first + 16, kib)))
        total = zlib.crc32(chunk, total)
        writer.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        await writer.drain()
    line = b"crc32 %08x\n" % total
    writer.write(b"%x\r\n" % len(line) + line + b"\r\n0\r\n\r\n")


async def answer(writer, method, target, body, close):
    path, _, query = target.partition("?")
    if method == "POST" and path == "/echo":
        status, content = "200 OK", body
    elif method != "GET":
        status, content = "405 Method Not Allowed", b"only GET, and POST to /echo\n"
    elif path == "/":
        status, content = "200 OK", f"{RELEASE} ok\n".encode()
    elif path in ("/health", "/ready"):
        status, content = "200 OK", b"ok\n"
    elif path == "/slow" and (ms := query_number(query, "ms", 60_000)) is not None:
        await asyncio.sleep(ms / 1000)
        status, content = "200 OK", f"slow {ms}\n".encode()
    elif path == "/large" and (kib := query_number(query, "kb", 65_536)) is not None:
        await large(writer, kib, close)
        await writer.drain()
        return
    elif path == "/env" and query.startswith("name="):
        status, content = "200 OK", os.environ.get(query[len("name="):], "").encode() + b"\n"
    else:
        status, content = "404 Not Found", b"no such path\n"
    writer.write(head(status, len(content), close) + content)
    await writer.drain()


async def serve_connection(reader, writer, stopping):
    try:
        while True:
            try:
                raw = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                return
            stopping.begin()
            try:
                first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
                method, target, _version = first.split(" ")
                headers = {}
                for line in lines:
                    name, _, value = line.partition(":")
                    headers[name.strip().lower()] = value.strip()
                body = await read_body(reader, headers)
                close = stopping.asked.is_set() or headers.get("connection", "").lower() == "close"
                await answer(writer, method, target, body, close)
            finally:
                stopping.end()
            if close:
                return
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        return
    finally:
        writer.close()


async def main():
    stopping = Stopping()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.asked.set)
    server = await asyncio.start_server(
        lambda reader, writer: serve_connection(reader, writer, stopping),
        "0.0.0.0",
        PORT,
        backlog=1024,
        limit=256 * 1024,
    )
    print(f"{RELEASE} listens on {PORT}", flush=True)
    await stopping.asked.wait()
    # What is in flight is finished; idle connections are closed by the end of the process.
    server.close()
    await stopping.idle.wait()
    print(f"{RELEASE} stops", flush=True)


asyncio.run(main())
