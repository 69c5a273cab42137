"""Sends requests through nginx and Caddy, and compares what the client gets and the backend sees.

`scripts/gateways` starts the programs and sets HOST, HOST_PID, ADA, BACKEND, NGINX_PORT and
CADDY_PORT: the URL and the process of the host, the texts of two tokens, and the ports of the
gateways.
"""

import asyncio
import http.client
import inspect
import itertools
import json
import os
import posixpath
import re
import signal
import socket
import sqlite3
import string
import time
import zlib
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import aiohttp
import requests

from identity import NAMES
from introspection import Tokens, allows

HOST, ADA, BACKEND = os.environ["HOST"], os.environ["ADA"], os.environ["BACKEND"]
GATEWAYS = {"nginx": int(os.environ["NGINX_PORT"]), "caddy": int(os.environ["CADDY_PORT"])}
CHALLENGE = 'Bearer realm="acme"'
REFUSED = f'{CHALLENGE}, error="invalid_token"'
# The longest wait for what must happen, in seconds.
PATIENCE = 10
serial = itertools.count()


def bearer(text):
    return ("Authorization", f"Bearer {text}")


def make(**settings):
    """Makes a token of Ada's, and returns its id and text."""
    settings.setdefault("name", f"test {next(serial)}")
    answer = requests.post(f"{HOST}/api/user-tokens", json=settings, headers=dict([bearer(ADA)]))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], answer.json()["bearer_token"]


READER_ID, READER = make(scopes=["datastores:read"])
WRITER_ID, WRITER = make(scopes=["datastores:write"])


def with_wrong_secret():
    """Returns a text with the id of one token and the secret of another, and the right checksum."""
    front = len("acme_pat_") + 22
    text = READER[:front] + WRITER[front:-6]
    rest, digits = zlib.crc32(text.encode()), []
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits.append((string.digits + string.ascii_uppercase + string.ascii_lowercase)[digit])
    return text + "".join(reversed(digits))


WRONG_SECRET = with_wrong_secret()


def identity_of(token_id, permissions):
    return dict(zip(NAMES, ["ada", "human", token_id, "", permissions], strict=True))


READER_IDENTITY = identity_of(READER_ID, "datastores:read")
WRITER_IDENTITY = identity_of(WRITER_ID, "datastores:write")


# The log of the backend.


class Log:
    """The requests that the backend has seen."""

    def __init__(self):
        self.file = open("requests.log", encoding="utf-8")
        self.line = ""

    def lines(self):
        """Yields the lines since the last call."""
        while part := self.file.readline():
            self.line += part
            if self.line.endswith("\n"):
                entry, self.line = json.loads(self.line), ""
                if "path" in entry:
                    assert_authorized(entry)
                yield entry

    def requests(self):
        return [entry for entry in self.lines() if "path" in entry]

    def wait_for(self, **fields):
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            if any(fields.items() <= entry.items() for entry in self.lines()):
                return
            time.sleep(0.01)
        raise AssertionError(f"the backend did not log {fields}")


LOG = Log()


def variable(name):
    """Returns the name that a header has for WSGI, CGI and PHP, which may merge several names."""
    return re.sub("[^A-Z0-9]", "_", name.upper())


def assert_authorized(request):
    """Fails if a request has an identity that the host did not give, or a path that it may not use."""
    variables = [(variable(name), value) for name, value in request["headers"]]
    ours = [(name, value) for name, value in variables if name.startswith("PATKIT")]
    path = unquote(
        urlsplit(request["path"]).path
        if "://" in request["path"]
        else request["path"].split("?")[0]
    )
    # Resolved as by a backend that takes `\\` for `/` and ignores `;`, and with the slash that `.` at
    # the end stands for.
    path = re.sub(";[^/]*", "", path.replace("\\", "/"))
    path = posixpath.normpath("/" + path.lstrip("/")) + (
        "/" if re.search(r"/\.{0,2}$", path) else ""
    )
    if path.startswith("/open/"):
        assert not ours, request
    else:
        assert sorted(name for name, _ in ours) == sorted(variable(name) for name in NAMES), request
        known = {name: unquote(value) for name, value in ours}
        assert known["PATKIT_OWNER"] in ("ada", "backend"), request
        if path.startswith("/datastores"):
            assert allows(known["PATKIT_PERMISSIONS"], "datastores:read"), request
    upgrades = [value for name, value in request["headers"] if name.lower() == "upgrade"]
    assert upgrades in ([], ["websocket"]), request
    if path != "/live":
        assert "AUTHORIZATION" not in dict(variables), request


@contextmanager
def failing_store():
    """Takes the table of the tokens away."""
    database = sqlite3.connect("gateway-host.db")
    database.execute("ALTER TABLE patkit_tokens RENAME TO patkit_tokens_away")
    try:
        yield
    finally:
        database.execute("ALTER TABLE patkit_tokens_away RENAME TO patkit_tokens")
        database.close()


# Requests.


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name]

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body}"


def send(port, path, headers=(), method="GET", body=b"", source="127.0.0.1"):
    """Sends a request whose headers may be there twice or have names that are unusual."""
    connection = http.client.HTTPConnection("127.0.0.1", port, PATIENCE, source_address=(source, 0))
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    result = Answer(answer.status, answer.getheaders(), answer.read())
    connection.close()
    return result


@contextmanager
def raw(port, data):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(data)
        yield connection


def until(connection, pattern):
    """Reads until the bytes match."""
    received = b""
    while not re.search(pattern, received, re.DOTALL):
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


def everything(connection):
    """Reads until the connection is closed or silent."""
    received = b""
    connection.settimeout(1)
    try:
        while part := connection.recv(65536):
            received += part
            connection.settimeout(0.15)
    except (TimeoutError, ConnectionError):
        pass
    return received


def assert_problem(answer, status, code, challenge):
    """Checks a refusal, which never reaches the backend."""
    assert answer.status == status, answer
    assert answer.all("www-authenticate") == ([challenge] if challenge else []), answer
    assert answer.all("content-type") == ["application/problem+json"], answer
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), answer
    assert problem["detail"] and problem["title"], answer
    assert LOG.requests() == []


def assert_passes(port, path="/x", token=None, expected=None, extra=()):
    token, expected = token or READER, expected or READER_IDENTITY
    answer = send(port, path, [bearer(token), *extra])
    assert answer.status == 200, answer
    assert answer.json() == {"path": path, "identity": expected, "length": 0}, answer
    seen = LOG.requests()
    assert [request["path"] for request in seen].count(path) == 1, seen
    return seen


# The checks. Each runs with each gateway.


def check_a_client_without_a_valid_token_is_refused(port):
    for path in ["/", "/x?y=z", "/datastores/1", "/live", "/patkit/authx"]:
        assert_problem(send(port, path), 401, "no_credential", CHALLENGE)
        for method in ["POST", "PUT", "DELETE", "OPTIONS"]:
            assert_problem(
                send(port, path, method=method, body=b"x"), 401, "no_credential", CHALLENGE
            )
    _, revoked = make()
    requests.post(f"{HOST}/revoke", data={"token": revoked}).raise_for_status()
    for text in [
        "x",
        "acme_pat_x",
        WRONG_SECRET,
        revoked,
        f"{READER}x",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    ]:
        assert_problem(send(port, "/x", [bearer(text)]), 401, "invalid_token", REFUSED)
    # A token is looked for in the header alone.
    assert_problem(
        send(port, f"/x?access_token={READER}&token={READER}"), 401, "no_credential", CHALLENGE
    )
    # Nobody reaches the host itself.
    internal = send(port, "/patkit/auth", [bearer(READER)])
    assert internal.status == 404 or internal.json()["path"] == "/patkit/auth", internal
    LOG.requests()


def check_a_missing_permission_is_refused(port):
    challenge = f'{CHALLENGE}, error="insufficient_scope", scope="datastores:read"'
    for token in [WRITER, BACKEND]:
        for path in ["/datastores/1", "/datastores", "/datastores?require=datastores:write"]:
            assert_problem(send(port, path, [bearer(token)]), 403, "insufficient_scope", challenge)


def check_the_backend_sees_the_identity(port):
    assert_passes(port)
    assert_passes(port, "/datastores/1")
    assert_passes(port, "/x?require=y", WRITER, WRITER_IDENTITY)
    answer = send(port, "/x", [("authorization", f"bEARER {BACKEND}")])
    identity = answer.json()["identity"]
    assert (identity["Patkit-Owner"], identity["Patkit-Owner-Kind"]) == (
        "backend",
        "service",
    ), answer
    assert identity["Patkit-Permissions"] == "tokens:introspect", answer
    body = b"0123456789" * 20_000
    answer = send(port, "/x", [bearer(READER)], "POST", body)
    assert answer.json()["length"] == len(body), answer
    assert send(port, "/open/x").json() == {"path": "/open/x", "identity": None, "length": 0}
    LOG.requests()


def spellings(name):
    """Yields the name with each hyphen or an underscore in its place, in several cases."""
    first, *rest = name.split("-")
    for joints in itertools.product("-_.", repeat=len(rest)):
        spelled = first + "".join(joint + part for joint, part in zip(joints, rest, strict=True))
        yield from {spelled, spelled.lower(), spelled.upper(), spelled.swapcase()}


def check_identity_headers_of_the_client_never_arrive(port):
    for name in NAMES:
        for spelled in spellings(name):
            for values in [["root"], [""], ["root", "root"], ["root", ""], ["-"]]:
                extra = [(spelled, value) for value in values]
                assert_passes(port, extra=extra)
                answer = send(port, "/open/x", [bearer(READER), *extra])
                assert answer.status == 200, answer
                [_] = LOG.requests()
        # `Connection` names headers for a gateway to remove.
        for listed in [
            name,
            name.lower(),
            f"close, {name}",
            f"{name}, X-Forwarded-For, Authorization",
        ]:
            assert_passes(port, extra=[("Connection", listed)])
            assert_passes(port, extra=[("Connection", listed), (name, "root")])
    every = [(name, "root") for name in NAMES]
    assert_passes(port, extra=every)
    LOG.requests()
    assert_problem(send(port, "/x", every), 401, "no_credential", CHALLENGE)
    assert_problem(
        send(port, "/datastores", [bearer(WRITER), ("Patkit-Permissions", "*")]),
        403,
        "insufficient_scope",
        f'{CHALLENGE}, error="insufficient_scope", scope="datastores:read"',
    )
    # What a gateway says to the host.
    for name in ["X-Original-URI", "X-Forwarded-Uri", "X-Forwarded-Method", "X-Rewrite-URL"]:
        assert_problem(send(port, "/x", [(name, "/open/x")]), 401, "no_credential", CHALLENGE)


def check_nobody_passes_while_the_store_fails(port):
    with failing_store():
        for path in ["/x", "/datastores/1", "/live"]:
            for text in [READER, WRONG_SECRET]:
                answer = send(port, path, [bearer(text)])
                assert answer.all("retry-after") == ["1"], answer
                assert_problem(answer, 503, "unavailable", None)
        assert_problem(send(port, "/x"), 401, "no_credential", CHALLENGE)
    assert_passes(port)


def check_a_request_body_is_streamed(port):
    for framing, part in [
        (b"Transfer-Encoding: chunked", b"5\r\n%b\r\n"),
        (b"Content-Length: 10", b"%b"),
    ]:
        head = b"POST /upload HTTP/1.1\r\nHost: x\r\n%b\r\n" % framing
        authorization = b"Authorization: Bearer " + READER.encode() + b"\r\n"
        with raw(port, head + authorization + b"\r\n") as connection:
            for text in [b"first", b"other"]:
                connection.sendall(part % text)
                LOG.wait_for(part=text.decode())
            if b"chunked" in framing:
                connection.sendall(b"0\r\n\r\n")
            assert b"200 OK" in until(connection, rb"Patkit-Permissions.*}}")
        # A refusal does not wait for the body if the client does.
        with raw(port, head + b"Expect: 100-continue\r\n\r\n") as connection:
            assert until(connection, rb"\r\n\r\n.*no_credential").startswith(b"HTTP/1.1 401 ")
        assert LOG.requests() == []


def check_a_response_body_is_streamed(port):
    head = f"GET /download HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {READER}\r\nConnection: close\r\n\r\n"
    with raw(port, head.encode()) as connection:
        until(connection, rb"\r\n\r\n.*first")
        assert send(port, "/release", [bearer(READER)], "POST").status == 200
        until(connection, rb"second")
    LOG.requests()


def check_a_websocket_lives_as_long_as_its_token(port):
    url = f"http://127.0.0.1:{port}/live"

    async def refused(session, status, headers=None):
        try:
            await session.ws_connect(url, headers=headers)
        except aiohttp.WSServerHandshakeError as error:
            assert error.status == status, error
        else:
            raise AssertionError("the connection was accepted")

    async def talk():
        _, text = make(scopes=["datastores:read"])
        headers = dict([bearer(text)])
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
            await refused(session, 401)
            await refused(session, 401, dict([bearer("acme_pat_x")]))
            async with session.ws_connect(url, headers=headers | {"Patkit-Owner": "root"}) as live:
                for message in ["a", "b"]:
                    await live.send_str(message)
                    assert await live.receive_json(timeout=PATIENCE) == {
                        "text": message,
                        "owner": "ada",
                    }
                # It stays open through some of the backend's checks.
                await asyncio.sleep(1.2)
                await live.send_str("c")
                assert await live.receive_json(timeout=PATIENCE) == {"text": "c", "owner": "ada"}
                requests.post(f"{HOST}/revoke", data={"token": text}).raise_for_status()
                await refused(session, 401, headers)
                closed = await live.receive(timeout=PATIENCE)
                assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 4401), closed

    asyncio.run(talk())
    assert {request["path"] for request in LOG.requests()} == {"/live"}


def check_an_open_websocket_is_closed_if_the_store_fails(port):
    async def talk():
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(
                f"http://127.0.0.1:{port}/live", headers=dict([bearer(READER)])
            ) as live:
                await live.send_str("a")
                await live.receive_json(timeout=PATIENCE)
                with failing_store():
                    closed = await live.receive(timeout=PATIENCE)
                assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1013), closed

    asyncio.run(talk())
    LOG.requests()


def check_an_upgrade_to_anything_but_a_websocket_is_not_passed_on(port):
    for protocol in ["h2c", "H2C", "TLS/1.0", "h2c, websocket", "websocket, h2c", "x"]:
        extra = [
            ("Upgrade", protocol),
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ]
        assert_passes(port, extra=extra)


def check_two_credentials_are_refused(port):
    for headers in [
        [bearer(READER), bearer(READER)],
        [bearer(READER), bearer(WRITER)],
        [bearer(READER), bearer("x")],
        [bearer(READER), ("Authorization", "Basic YTpi")],
        [("authorization", f"Bearer {READER}"), ("AUTHORIZATION", "")],
        [("Authorization", f"Bearer {READER}, Bearer {WRITER}")],
        [("Authorization", f"Bearer {READER} {WRITER}")],
    ]:
        for path in ["/x", "/datastores/1", "/live"]:
            answer = send(port, path, headers)
            # nginx itself refuses two `Authorization` headers. The host cannot answer 400, because
            # nginx would take it for a failure.
            assert answer.status == 400 or answer.all("www-authenticate") == [REFUSED], answer
            assert answer.status in (400, 401), answer
            assert LOG.requests() == []


def check_a_long_credential_of_another_scheme_is_no_credential(port):
    answer = send(port, "/x", [("Authorization", "Negotiate " + "YII" * 4096)])
    assert_problem(answer, 401, "no_credential", CHALLENGE)


def check_the_address_of_the_client_comes_from_the_gateway(port):
    _, bound = make(allowed_networks=["127.0.0.9/32"])
    claims = [
        ("X-Forwarded-For", "127.0.0.9"),
        ("X-Real-IP", "127.0.0.9"),
        ("Forwarded", "for=127.0.0.9"),
    ]
    assert send(port, "/x", [bearer(bound)], source="127.0.0.9").status == 200
    other = [("X-Forwarded-For", "192.0.2.1")]
    assert send(port, "/x", [bearer(bound), *other], source="127.0.0.9").status == 200
    [_, _] = LOG.requests()
    for extra in [
        [],
        *([claim] for claim in claims),
        [claims[0], claims[0]],
        [("X_Forwarded_For", "127.0.0.9")],
    ]:
        assert_problem(send(port, "/x", [bearer(bound), *extra]), 401, "invalid_token", REFUSED)


# Requests that a gateway and a backend could understand differently.

INNER = f"GET /smuggled HTTP/1.1\r\nHost: x\r\n{''.join(f'{name}: root{chr(13)}{chr(10)}' for name in NAMES)}\r\n"


def check_a_request_within_a_request_is_not_smuggled(port):
    chunked = "0\r\n\r\n" + INNER
    length = f"Content-Length: {len(chunked)}"
    short = "Content-Length: 5"
    for framing, body in [
        ([length, "Transfer-Encoding: chunked"], chunked),
        (["Transfer-Encoding: chunked", length], chunked),
        ([short, "Transfer-Encoding: chunked"], chunked),
        ([length, "Transfer-Encoding: xchunked"], chunked),
        ([length, "Transfer-Encoding : chunked"], chunked),
        ([length, "Transfer-Encoding\t: chunked"], chunked),
        ([length, "Transfer-Encoding:\tchunked"], chunked),
        ([length, "Transfer-Encoding: chunked "], chunked),
        ([length, "Transfer-Encoding:\x0bchunked"], chunked),
        ([length, "Transfer-Encoding: \x00chunked"], chunked),
        ([length, "Transfer-Encoding: CHUNKED"], chunked),
        ([length, 'Transfer-Encoding: "chunked"'], chunked),
        ([length, "Transfer-Encoding: identity, chunked"], chunked),
        ([length, "Transfer-Encoding: chunked, identity"], chunked),
        ([length, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"], chunked),
        ([length, "Transfer-Encoding: identity", "Transfer-Encoding: chunked"], chunked),
        ([length, "Transfer_Encoding: chunked"], chunked),
        ([length, " Transfer-Encoding: chunked"], chunked),
        ([length, "X: y\r\n Transfer-Encoding: chunked"], chunked),
        ([length, "X: y\nTransfer-Encoding: chunked"], chunked),
        ([length, "X: y\rTransfer-Encoding: chunked"], chunked),
        (["Transfer-Encoding: chunked"], "0;x=y\r\nX: y\r\n\r\n" + INNER),
        (["Transfer-Encoding: chunked"], "0\n\n" + INNER),
        (["Transfer-Encoding: chunked"], "fffffffffffffffff0\r\n" + INNER),
        (["Transfer-Encoding: chunked"], "-1\r\n" + INNER),
        (["Transfer-Encoding: chunked"], "0x0\r\n\r\n" + INNER),
        (["Content-Length: 0", length], chunked),
        ([length, "Content-Length: 0"], chunked),
        ([short, short], chunked),
        (["Content-Length: 0, 5"], chunked),
        (["Content-Length: 5, 5"], chunked),
        (["Content-Length: +5"], chunked),
        (["Content-Length: -5"], chunked),
        (["Content-Length: 0x5"], chunked),
        (["Content-Length : 0", length], chunked),
        (["Content_Length: 0", length], chunked),
        (["Content-Length: 99999999999999999999"], chunked),
        (["Content-Length: 5 5"], chunked),
        ([], chunked),
        (["Expect: 100-continue", length], chunked),
        (["Upgrade: h2c", "Connection: Upgrade", short], chunked),
        (["Upgrade: websocket", "Connection: Upgrade", short], chunked),
        (["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 777"], INNER),
    ]:
        for token in [READER, None]:
            lines = ["POST /x HTTP/1.1", "Host: x", *framing]
            if token:
                lines.append("Authorization: Bearer " + token)
            with raw(port, "\r\n".join([*lines, "", body]).encode("latin-1")) as connection:
                everything(connection)
            # The next request on the gateway's connection to the backend gets its own answer.
            after = f"/after/{next(serial)}"
            seen = [
                request["path"] for request in assert_passes(port, after, WRITER, WRITER_IDENTITY)
            ]
            assert set(seen) <= ({"/x", after} if token else {after}), (framing, seen)


def check_a_malformed_request_is_refused_or_harmless(port):
    authorization = f"Authorization: Bearer {READER}"
    for lines in [
        ["GET /x HTTP/1.1", "Host: x", authorization.replace(":", " :")],
        ["GET /x HTTP/1.1", "Host: x", authorization.replace(":", "\t:")],
        ["GET /x HTTP/1.1", "Host: x", authorization, "Patkit-Owner : root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, "Patkit-Owner\t: root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, "Patkit-Owner\x00: root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, " Patkit-Owner: root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, "X: y\r\n Patkit-Owner: root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, "X: y\nPatkit-Owner: root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, "X: y\rPatkit-Owner: root"],
        ["GET /x HTTP/1.1", "Host: x", authorization, "Patkit-Owner:root", "Patkit-Owner;: root"],
        ["GET /x HTTP/1.1", "Host: x", "Host: y", authorization],
        ["GET /x HTTP/1.1", authorization],
        ["GET /x HTTP/1.0", authorization, "Patkit-Owner: root"],
        ["GET /x HTTP/1.1 HTTP/1.0", "Host: x", authorization],
        ["GET  /x HTTP/1.1", "Host: x", authorization],
        ["GET /x y HTTP/1.1", "Host: x", authorization],
        ["GET\t/x\tHTTP/1.1", "Host: x", authorization],
        ["GET /datastores/1"],
        ["get /x HTTP/1.1", "Host: x", authorization],
        ["CONNECT 127.0.0.1:4000 HTTP/1.1", "Host: x", authorization],
        ["TRACE /x HTTP/1.1", "Host: x", authorization],
        ["OPTIONS * HTTP/1.1", "Host: x", authorization],
        ["PRI * HTTP/2.0", "", "SM", ""],
    ]:
        with raw(port, "\r\n".join([*lines, "", ""]).encode("latin-1")) as connection:
            everything(connection)
        assert_passes(port, f"/after/{next(serial)}")


def check_no_spelling_of_a_path_avoids_the_permission(port):
    challenge = f'{CHALLENGE}, error="insufficient_scope", scope="datastores:read"'
    for path in [
        "/datastores/1",
        "/datastores/../datastores/1",
        "/x/../datastores/1",
        "/x/%2e%2e/datastores/1",
        "/x/.%2E/datastores/1",
        "/open/../datastores/1",
        "/open/%2e%2e/datastores/1",
        "/open/%2E./datastores/1",
        "/open/..%2fdatastores/1",
        "/open%2f..%2fdatastores%2f1",
        "/open/./../datastores/1",
        "/open/x/../../datastores/1",
        "/open//..//datastores/1",
        "/open/../open/../datastores/1",
        "//datastores/1",
        "///datastores//1",
        "/./datastores/1",
        "/%2e/datastores/1",
        "/%64atastores/1",
        "/%2fdatastores/1",
        "/datastores%2f1",
        "/datastores%00/1",
        "/datastores;x=y/1",
        "/datastores/%2e%2e/datastores/1",
        "/datastores#/open/",
        "/datastores?/open/",
        "http://x/datastores/1",
        "http://x/open/../datastores/1",
        "http://x//datastores/1",
        "HTTP://x/datastores/1",
        "http://datastores/datastores/1",
    ]:
        for headers in [[], [bearer(WRITER)]]:
            head = "".join(
                f"{name}: {value}\r\n"
                for name, value in [("Host", "x"), ("Connection", "close"), *headers]
            )
            with raw(port, f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()) as connection:
                answer = everything(connection)
            status = int(answer.split(b" ", 2)[1])
            assert status in ((400, 401, 403) if headers else (400, 401)), (path, answer)
            assert status != 403 or challenge.encode() in answer, (path, answer)
            assert LOG.requests() == [], path
    # What may be seen as another path by the backend. `assert_authorized` reads the log.
    for path in [
        "/open/%252e%252e/datastores/1",
        "/Datastores/1",
        "/open/..;/datastores",
        "/open/..%5cdatastores",
        "/open/x%5c..%5c../datastores",
        "/open/.%2e;/x",
        "/open",
        "/open/%2fdatastores",
        "http://x/open/x",
        "/open/../x",
        "/open/.",
        "/open/%2e%2e",
        "/open/..",
        "*",
        "x",
        "/open/\x7f",
    ]:
        for headers in [[], [bearer(WRITER)]]:
            head = "".join(
                f"{name}: {value}\r\n"
                for name, value in [("Host", "x"), ("Connection", "close"), *headers]
            )
            with raw(port, f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()) as connection:
                everything(connection)
            LOG.requests()


# The checks without a gateway.


def check_the_host_believes_the_gateway_alone():
    _, bound = make(allowed_networks=["192.0.2.0/24"])
    port = urlsplit(HOST).port
    headers = [bearer(bound), ("X-Forwarded-For", "192.0.2.7")]
    assert send(port, "/auth", headers, source="127.0.0.1").status == 200
    assert send(port, "/auth", headers, source="127.0.0.9").status == 401
    assert send(port, "/auth", headers[:1], source="127.0.0.1").status == 401


def check_introspection_and_revocation_by_a_library():
    tokens = Tokens(HOST, BACKEND)
    description = tokens.introspect(READER)
    assert (description["sub"], description["username"], description["jti"]) == (
        "ada",
        "Ada Lovelace",
        READER_ID,
    )
    assert (description["scope"], description["token_type"]) == ("datastores:read", "Bearer")
    assert description["iat"] <= time.time() < description["exp"]
    for foreign in ["x", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", WRONG_SECRET, "a+b c%"]:
        assert tokens.introspect(foreign) is None, foreign
        tokens.revoke(foreign)
    _, bound = make(allowed_networks=["192.0.2.0/24"])
    assert tokens.introspect(bound) is None
    assert tokens.introspect(bound, "192.0.2.7") and not tokens.introspect(bound, "192.0.3.7")
    _, text = make()
    assert tokens.introspect(text)
    tokens.revoke(text)
    assert tokens.introspect(text) is None
    tokens.revoke(text)
    assert tokens.introspect(READER)

    def status(own_token):
        try:
            Tokens(HOST, own_token).introspect(READER)
        except requests.HTTPError as error:
            return error.response.status_code

    assert status(READER) == 403 and status("acme_pat_x") == 401 and status(text) == 401
    twice = send(
        urlsplit(HOST).port,
        "/introspect",
        [bearer(BACKEND), bearer(BACKEND), ("Content-Type", "application/x-www-form-urlencoded")],
        "POST",
        f"token={READER}".encode(),
    )
    assert (twice.status, twice.json()["code"]) == (400, "invalid_request"), twice

    for scope, permission, expected in [
        ("a:*", "a:b", True),
        ("a:*", "a:b:c", True),
        ("a:*", "a", False),
        ("*", "a", True),
        ("a b:c", "b:c", True),
        ("a:b", "a:b:c", False),
        ("", "a", False),
        ("ab:*", "a:b", False),
    ]:
        assert allows(scope, permission) == expected, (scope, permission)


def check_nobody_passes_without_the_host():
    """Ends the host, and so must be the last check."""
    os.kill(int(os.environ["HOST_PID"]), signal.SIGTERM)
    limit = time.monotonic() + PATIENCE
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", urlsplit(HOST).port)) == 0:
            assert time.monotonic() < limit, "the host does not stop"
            time.sleep(0.05)
    for port in GATEWAYS.values():
        for path in ["/x", "/datastores", "/live"]:
            for headers in [[], [bearer(READER)]]:
                answer = send(port, path, headers)
                assert answer.status in (502, 503), answer
        assert LOG.requests() == []
        assert send(port, "/open/x").status == 200
        [_] = LOG.requests()


def main():
    checks = [(name, check) for name, check in globals().items() if name.startswith("check_")]
    for name, check in checks:
        gateways = GATEWAYS if "port" in inspect.signature(check).parameters else {"host": None}
        for gateway, port in gateways.items():
            # What an earlier request left behind is checked as well.
            LOG.requests()
            check(*[port] if port else [])
            print(f"ok: {gateway}: {name.removeprefix('check_').replace('_', ' ')}", flush=True)
    LOG.requests()


main()
