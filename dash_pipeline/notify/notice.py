"""A notice, and what channels show of it.

Belongs here: values and texts. Does not belong here: the queue (`dash_pipeline/storage/notices.py`), sending
(`send.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from dash_pipeline.settings import Severity

Document = dict[str, Any]

#: The route of owners that have none of their own.
EVERYBODY_ELSE = "*"
_COLOURS = {"low": "#9aa3ad", "medium": "#d98e04", "high": "#c0392b"}
_RESOLVED = "#2e8b57"


@dataclass(frozen=True)
class Notice:
    """What operators are to know. `key` names the condition: while it is open, the same key is told once and then
    after each repeat interval. `title`: one line; `text`: what is wrong and what to do; `links`: name -> URL."""

    key: str
    severity: Severity
    title: str
    text: str
    owner: str = EVERYBODY_ELSE
    links: Mapping[str, str] = field(default_factory=dict)

    def document(self, event: str) -> Document:
        """What a webhook gets; lines are lines, whatever was put in."""
        return {
            "event": event,
            "key": self.key,
            "severity": self.severity,
            "title": " ".join(self.title.split()),
            "text": self.text.strip(),
            "owner": self.owner,
            "links": dict(self.links),
        }


def channels_of(owner: str, routes: Mapping[str, list[str]]) -> list[str]:
    """The channels of an owner: its own, else those of everybody else, each once."""
    return list(dict.fromkeys(routes.get(owner, routes.get(EVERYBODY_ELSE, []))))


def headline(message: Document) -> str:
    """The notice in one line."""
    word = {"raised": message["severity"].upper(), "repeated": f"STILL {message['severity'].upper()}"}
    return f"{word.get(message['event'], 'RESOLVED')}: {message['title']}"


def slack(message: Document) -> Document:
    """The payload of Slack's incoming webhooks, which Mattermost, Rocket.Chat and others take, too."""
    links = "\n".join(f"<{_escaped(url)}|{_escaped(name)}>" for name, url in message["links"].items())
    return {
        "text": _escaped(headline(message)),
        "attachments": [
            {
                "color": _RESOLVED if message["event"] == "resolved" else _COLOURS[message["severity"]],
                "text": "\n".join(part for part in (_escaped(message["text"]), links) if part),
                "footer": _escaped(f"{message['owner']} · {message['key']}"),
            }
        ],
    }


def mail(message: Document, sender: str, to: list[str], id_: str) -> EmailMessage:
    """The e-mail. `id_`: the same for each try, so that mail programs show one that came twice once."""
    found = EmailMessage()
    found["Subject"] = f"[dash] {headline(message)}"[:200]
    found["From"], found["To"] = sender, ", ".join(to)
    found["Message-ID"] = f"<{id_}@dash-pipeline>"
    found["X-Dash-Key"] = " ".join(message["key"].split())
    lines = [message["text"], "", *(f"{name}: {url}" for name, url in message["links"].items())]
    found.set_content("\n".join([*lines, f"owner: {message['owner']}", f"key: {message['key']}"]) + "\n")
    return found


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
