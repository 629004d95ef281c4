"""One notice over one channel, once.

Belongs here: requests and mails, and what an answer means. Does not belong here: when it is tried again (`tell.py`).
"""

from __future__ import annotations

import json
import logging
import smtplib
import ssl
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from dash_pipeline.alerts.deliver import TIMEOUT_S, Answer, cut_off, post_signed, reason
from dash_pipeline.notify.notice import Document, mail, slack
from dash_pipeline.settings import Channel
from dash_pipeline.storage.alerts import UNANSWERED

log = logging.getLogger(__name__)

# As an HTTP receiver would say that it never takes this message.
_REFUSED = 422
# A password that is wrong, a server that wants one: that is the channel's mistake, not the message's.
_LOGIN = range(530, 540)


def send(channel: Channel, message: Document, id_: str, secret: SecretStr | None) -> Answer:
    """Send once; `id_` is the same for each try of the same message. Never raises for what the network does."""
    if channel.kind == "email":
        return _mail(channel, message, id_)
    if channel.kind == "slack":
        # Slack does not look at signatures, and need not see ours.
        body, secret = slack(message), None
    else:
        body = {"type": "dash.notice", "sent_at": datetime.now(UTC).isoformat(timespec="milliseconds")} | message
    return post_signed(channel.url, json.dumps(body, separators=(",", ":")).encode(), id_, secret)


def _mail(channel: Channel, message: Document, id_: str) -> Answer:
    parts = urlsplit(channel.url)
    host, sent = parts.hostname or "", False
    try:
        # A missing CA file is an OSError, too.
        tls = ssl.create_default_context(cafile=channel.ca_file) if parts.scheme != "smtp+plain" else None
        if parts.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, parts.port or 465, timeout=TIMEOUT_S, context=tls)
        else:
            server = smtplib.SMTP(host, parts.port or (587 if tls else 25), timeout=TIMEOUT_S)
        with cut_off(lambda: server.sock), server:
            if parts.scheme == "smtp":
                server.starttls(context=tls)
            if parts.username is not None:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            sent = True
            refused = server.send_message(mail(message, channel.sender, channel.to, id_))
            if refused:
                log.warning("%s does not take mail for %s", host, ", ".join(refused))
            return Answer(250)
    except smtplib.SMTPRecipientsRefused as error:
        return _answer(*max(error.recipients.values(), key=lambda said: said[0] < 500))
    except smtplib.SMTPResponseException as error:
        return _answer(error.smtp_code, error.smtp_error)
    except (OSError, smtplib.SMTPException, ValueError) as error:
        if sent:
            return Answer(error=f"{UNANSWERED}: {reason(error)}", arrived=True)
        return Answer(error=f"no connection: {reason(error)}")


def _answer(code: int, said: bytes | str) -> Answer:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    error = f"SMTP {code}: {' '.join(text.split())[:200]}"
    return Answer(_REFUSED if code >= 500 and code not in _LOGIN else None, error)
