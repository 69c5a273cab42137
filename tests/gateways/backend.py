"""A service in Python that gets its identities from a gateway.

`backend.py PORT` listens on 127.0.0.1, and takes the host's URL from HOST and its own token from
BACKEND. `scripts/gateways` puts `identity.py` and `introspection.py` next to it, from the guides.
It writes a line of JSON for each request and each part of a body to `requests.log`, which the tests
read.
"""

import asyncio
import json
import os
import sys

from aiohttp import WSMsgType, web

from identity import identity
from introspection import Tokens

# How often an open connection is checked, in seconds. A real service needs it less often.
INTERVAL = 0.5

tokens = Tokens(os.environ["HOST"], os.environ["BACKEND"])
released = asyncio.Event()
requests_log = open("requests.log", "w", buffering=1, encoding="utf-8")


def log(**fields):
    print(json.dumps(fields), file=requests_log)


@web.middleware
async def log_and_require_identity(request, handler):
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers
    ]
    log(method=request.method, path=request.raw_path, headers=headers)
    if not request.path.startswith("/open/"):
        try:
            request["identity"] = identity(headers)
        except PermissionError as error:
            raise web.HTTPForbidden(text=str(error)) from error
    return await handler(request)


async def echo(request):
    body = await request.read()
    return web.json_response(
        {"path": request.raw_path, "identity": request.get("identity"), "length": len(body)}
    )


async def upload(request):
    """Logs each part of the body when it arrives."""
    async for part in request.content.iter_any():
        log(part=part.decode())
    return web.json_response({"identity": request["identity"]})


async def download(request):
    """Sends the first part of a body, and the rest after a request to `/release`."""
    released.clear()
    answer = web.StreamResponse()
    await answer.prepare(request)
    await answer.write(b"first")
    await asyncio.wait_for(released.wait(), 10)
    await answer.write(b" second")
    return answer


async def release(_):
    released.set()
    return web.Response()


async def live(request):
    """Echoes messages until the token is no longer active."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    checks = asyncio.create_task(close_if_inactive(socket, request))
    try:
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_json(
                    {"text": message.data, "owner": request["identity"]["Patkit-Owner"]}
                )
    finally:
        checks.cancel()
    return socket


async def close_if_inactive(socket, request):
    """Asks about the token at each interval, and closes the connection unless it is active."""
    text = request.headers["Authorization"].partition(" ")[2]
    address = request.headers["X-Forwarded-For"]
    try:
        while await asyncio.to_thread(tokens.introspect, text, address):
            await asyncio.sleep(INTERVAL)
        await socket.close(code=4401, message=b"the token is no longer active")
    except OSError:  # which is what `requests` raises if the host does not answer, or with an error
        await socket.close(code=1013, message=b"the token cannot be checked")


app = web.Application(middlewares=[log_and_require_identity])
app.router.add_post("/upload", upload)
app.router.add_get("/download", download)
app.router.add_post("/release", release)
app.router.add_get("/live", live)
app.router.add_route("*", "/{path:.*}", echo)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
