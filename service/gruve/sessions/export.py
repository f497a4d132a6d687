"""Export and import: a session as one signed blob with a format version, which another server accepts.

Layout: `MAGIC`, the format version, the lengths of head, generations, transcript and state, these four, and the
HMAC-SHA-256 of everything before it. The blob is not encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct

from gruve.errors import BlobRefused, ExportTooLarge
from gruve.sessions.encoding import pack_generation, pack_head, pack_state, pack_tokens, unpack_session
from gruve.sessions.record import DEFAULT_TENANT, Session
from gruve.sessions.store import SessionSummary, StoredSession

MAGIC = b"gruve session\n"
VERSION = 1
HEADER = struct.Struct("<H4I")
SIGNATURE_BYTES = hashlib.sha256().digest_size


def export_session(session: Session, key: bytes, max_bytes: int) -> bytes:
    """Exports the session's metadata, generations, transcript and state. Raises `ExportTooLarge` beyond `max_bytes`."""
    state = b"" if session.state is None else struct.pack("<I", session.consumed) + pack_state(session.state)
    generations = json.dumps([pack_generation(generation) for generation in session.generations]).encode()
    parts = (pack_head(session).encode(), generations, pack_tokens(session.transcript), state)
    body = MAGIC + HEADER.pack(VERSION, *map(len, parts)) + b"".join(parts)
    if len(body) + SIGNATURE_BYTES > max_bytes:
        raise ExportTooLarge(
            f"session {session.id!r} takes {len(body) + SIGNATURE_BYTES} bytes; an import accepts at most {max_bytes}"
        )
    return body + _sign(body, key)


def import_session(blob: bytes, key: bytes) -> Session:
    """Imports a session; it has no id yet. Raises `BlobRefused`."""
    body, signature = blob[:-SIGNATURE_BYTES], blob[-SIGNATURE_BYTES:]
    if not body.startswith(MAGIC) or len(body) < len(MAGIC) + HEADER.size:
        raise BlobRefused(f"{len(blob)} bytes are not an exported session")
    version, *lengths = HEADER.unpack_from(body, len(MAGIC))
    if version != VERSION:
        raise BlobRefused(f"the exported session has format version {version}; this server reads {VERSION}")
    if not hmac.compare_digest(_sign(body, key), signature):
        raise BlobRefused("the exported session was altered, or was signed with another key than this server's")
    parts, at = [], len(MAGIC) + HEADER.size
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    head, generations, transcript, state = parts
    states = ((struct.unpack_from("<I", state)[0], state[4:]),) if state else ()
    summary = SessionSummary("", head.decode(), len(transcript) // 2, 0.0, 0.0, "", DEFAULT_TENANT)
    return unpack_session(StoredSession(summary, transcript, tuple(json.loads(generations)), states), 0)


def _sign(body: bytes, key: bytes) -> bytes:
    return hmac.new(key, b"gruve export" + body, hashlib.sha256).digest()
