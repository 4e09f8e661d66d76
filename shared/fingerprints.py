"""Fingerprints: short digests by which a repeated request or publication is told from another one.

Owns how they are made. The writer keeps them, and whoever restores or verifies a log makes those of publications again.
"""

import binascii
import hashlib
from typing import Any

import msgspec

from shared.events import EntryContent

# RFC 4648, section 5.
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def fingerprint(*parts: Any) -> str:
    """A short digest of parsed values: equal for requests that mean the same, whatever their spelling."""
    digest = hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).digest()
    return binascii.b2a_base64(digest[:18], newline=False).translate(_URL_SAFE).decode()


def publication_fingerprint(*, published_at: str | None, key_event: bool, content: EntryContent) -> str:
    """That of a publication as the desk sent it, after validation: an absent time equals an absent time."""
    return fingerprint(published_at, key_event, content)
