"""A server of known speed, to measure with what is in front of it: `backend.py NAME FOLDER`. It prints its port.

Belongs here: answers that take the time they are told, and a record of what arrived that survives SIGKILL.
Does not belong here: anything of the platform.

`?ms=N` is how long an answer takes. Each request is a line of FOLDER/NAME.seen before it is worked on. Health checks
are answered with FOLDER/NAME.health if that is there; an empty file is an illness.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
import time
from pathlib import Path

CHECKS = ("/server_info", "/healthz", "/_cluster/health?local=true")
#: RFC 6455.
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
WELL = '{"status":"green","discovered_cluster_manager":true}'

at_once = 0


async def main(name: str, folder: Path) -> None:
    """Serve on a free port of 127.0.0.1 until killed."""
    seen = os.open(folder / f"{name}.seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        global at_once
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        method, path, _ = request.split(" ")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        await reader.readexactly(int(headers.get("content-length", 0)))
        if path in CHECKS:
            health = folder / f"{name}.health"
            body = health.read_text() if health.exists() else WELL
            status = "200 OK" if body else "503 Ill"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            return
        os.write(seen, json.dumps([method, path, headers, time.monotonic()]).encode() + b"\n")
        if "upgrade" in headers:
            accept = base64.b64encode(
                hashlib.sha1((headers["sec-websocket-key"] + WEBSOCKET).encode()).digest()
            ).decode()
            said = f"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}"
            writer.write(f"HTTP/1.1 101 Switching Protocols\r\n{said}\r\n\r\n".encode())
            while data := await reader.read(1000):
                writer.write(data)
            raise ConnectionError
        at_once += 1
        now = at_once
        await asyncio.sleep(float(path.partition("?ms=")[2] or 0) / 1000)
        at_once -= 1
        writer.write(f"HTTP/1.1 200 OK\r\nserved-by: {name}\r\nat-once: {now}\r\ncontent-length: 2\r\n\r\nok".encode())

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
