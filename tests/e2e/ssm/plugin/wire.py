"""The binary message and its JSON bodies, written from the protocol's description alone.

Every check is as strict as the wire allows: what differs from what the genuine programs send is an error here, though
they would bear it.
"""

import hashlib
import json
import struct
import time
import uuid

SYN, FIN = 1, 2
OUTPUT, ERROR, SIZE = 1, 2, 3
HANDSHAKE_REQUEST, HANDSHAKE_RESPONSE, HANDSHAKE_COMPLETE = 5, 6, 7
CHALLENGE_REQUEST, CHALLENGE_RESPONSE, FLAG, STDERR, EXIT_CODE = 8, 9, 10, 11, 12
DISCONNECT_TO_PORT, TERMINATE_SESSION, CONNECT_TO_PORT_ERROR = 1, 2, 3


class Violation(Exception):
    """The other side broke the protocol."""


def check(condition, what):
    if not condition:
        raise Violation(what)


def swap(raw):
    """A UUID's halves are in the other order on the wire."""
    return raw[8:] + raw[:8]


def encode(kind, number, flags, payload_type, payload):
    message_id = uuid.uuid4()
    head = struct.pack(">I", 116)
    head += kind.encode().ljust(32, b" ")
    head += struct.pack(">IQqQ", 1, int(time.time() * 1000), number, flags)
    head += swap(message_id.bytes)
    head += hashlib.sha256(payload).digest()
    head += struct.pack(">II", payload_type, len(payload))
    return head + payload


class Message:
    def __init__(self, frame):
        check(len(frame) >= 120, f"a frame of {len(frame)} bytes")
        (header,) = struct.unpack_from(">I", frame)
        check(header == 116, f"header length {header}")
        kind = frame[4:36]
        self.kind = kind.decode("ascii").rstrip(" ")
        check(self.kind and kind == self.kind.encode().ljust(32, b" "), f"type {kind}")
        schema, self.created, self.number, self.flags = struct.unpack_from(">IQqQ", frame, 36)
        self.id = uuid.UUID(bytes=swap(frame[64:80]))
        digest = frame[80:112]
        self.type, length = struct.unpack_from(">II", frame, 112)
        self.payload = frame[120:]
        check(schema == 1, f"schema {schema}")
        check(self.created != 0, "created is 0")
        check(abs(self.created / 1000 - time.time()) < 86400, f"created {self.created}")
        check(self.id.version == 4, f"message id {self.id}")
        check(length == len(self.payload) > 0, f"payload length {length}")
        check(digest == hashlib.sha256(self.payload).digest(), "the digest")
        flags = {
            "output_stream_data": SYN if self.number == 0 else 0,
            "acknowledge": SYN | FIN,
            "channel_closed": 0,
            "start_publication": 0,
            "pause_publication": 0,
        }
        check(self.kind in flags, f"a message of type {self.kind}")
        check(self.flags == flags[self.kind], f"{self.kind} {self.number} with flags {self.flags}")
        if self.kind != "output_stream_data":
            check((self.number, self.type) == (0, 0), f"{self.kind} with a number or a type")

    def json(self, *keys):
        """The payload, whose keys must be these in this order."""
        body = json.loads(self.payload)
        check(tuple(body) == keys, f"{self.kind} with the keys {tuple(body)}")
        return body


def compact(body):
    return json.dumps(body, separators=(",", ":")).encode()


def acknowledgement(message):
    body = {
        "AcknowledgedMessageType": message.kind,
        "AcknowledgedMessageId": str(message.id),
        "AcknowledgedMessageSequenceNumber": message.number,
        "IsSequentialMessage": True,
    }
    return encode("acknowledge", 0, SYN | FIN, 0, compact(body))
