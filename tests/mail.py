"""A mail server for tests: real SMTP on a port of its own, plain, with STARTTLS or TLS, with or without a password."""

from __future__ import annotations

import base64
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Mailbox:
    """What came. `refuses`: the answer to each message's end instead of taking it; `encrypted`: whether the connection
    of each message was."""

    port: int = 0
    messages: list[EmailMessage] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    refuses: str = ""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, secret = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, secret


@contextmanager
def mail_server(mode: str, folder: Path, login: tuple[str, str] | None = None) -> Iterator[Mailbox]:
    """Listens while it is entered; `mode`: smtp (STARTTLS is demanded), smtps, smtp+plain."""
    context = None
    if mode != "smtp+plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(folder))
    box, listener = Mailbox(), socket.create_server(("127.0.0.1", 0))
    box.port = listener.getsockname()[1]

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                with suppress(OSError):
                    _Session(connection, box, mode, context, login).run()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield box
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@dataclass
class _Session:
    sock: Any
    box: Mailbox
    mode: str
    context: ssl.SSLContext | None
    login: tuple[str, str] | None
    secure: bool = False
    known: bool = False

    def run(self) -> None:
        if self.mode == "smtps":
            self._encrypt()
        self.lines = self.sock.makefile("rb")
        self._say("220 localhost")
        while line := self.lines.readline().decode().strip():
            verb = line.split()[0].upper()
            if verb == "QUIT":
                self._say("221 bye")
                break
            self._answer(verb, line)
        self.sock.close()

    def _encrypt(self) -> None:
        assert self.context is not None
        self.sock, self.secure = self.context.wrap_socket(self.sock, server_side=True), True

    def _answer(self, verb: str, line: str) -> None:
        if verb == "EHLO":
            offers = ["localhost", *(["STARTTLS"] if self.mode == "smtp" and not self.secure else [])]
            offers += ["AUTH PLAIN"] if self.login else []
            for offer in offers[:-1]:
                self._say(f"250-{offer}")
            self._say(f"250 {offers[-1]}")
        elif verb == "STARTTLS":
            self._say("220 go on")
            self._encrypt()
            self.lines = self.sock.makefile("rb")
        elif self.mode != "smtp+plain" and not self.secure:
            self._say("530 STARTTLS first")
        elif verb == "AUTH":
            _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
            self.known = (user, password) == self.login
            self._say("235 welcome" if self.known else "535 wrong")
        elif verb == "MAIL" and self.login and not self.known:
            self._say("530 who are you")
        elif verb == "DATA":
            self._say("354 go on")
            self._take()
        else:
            self._say("250 fine")

    def _take(self) -> None:
        lines = []
        while (line := self.lines.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        if self.box.refuses:
            self._say(self.box.refuses)
            return
        self.box.messages.append(message_from_bytes(b"".join(lines), policy=policy.default))  # type: ignore[arg-type]
        self.box.encrypted.append(self.secure)
        self._say("250 taken")

    def _say(self, text: str) -> None:
        self.sock.sendall(f"{text}\r\n".encode())
