"""The data channel: opening, numbering, acknowledgement, resending, handshake, resuming."""

import base64
import json
import os
import random
import ssl
import struct
import sys
import threading
import time
import uuid

import boto3
import websocket
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wire import *

VERSION = os.environ.get("PLUGIN_VERSION", "1.2.677.0")
PAYLOAD = 1024


def version(text):
    return tuple(int(part) for part in text.split("."))


class Closed(Exception):
    """The session is over; the text is the service's."""


class Channel:
    def __init__(self, response, region, profile, request, endpoint):
        self.session, self.url = response["SessionId"], response["StreamUrl"]
        self.token = response["TokenValue"]
        self.region, self.profile, self.request, self.endpoint = region, profile or None, request, endpoint
        self.client_id = str(uuid.uuid4())
        self.socket = None
        self.lock = threading.RLock()
        self.sent = {}
        self.next_out, self.expected, self.buffered = 0, 0, {}
        self.agent_version, self.session_type, self.properties = None, None, None
        self.keys, self.seals, self.kms_key = None, False, None
        self.rtt, self.variation, self.timeout = 0.1, 0.0, 0.2
        self.acknowledged = 0

    # The connection

    def connect(self):
        context = ssl.create_default_context()
        self.socket = websocket.create_connection(
            self.url, sslopt={"context": context}, enable_multithread=True, skip_utf8_validation=True
        )
        opening = {
            "MessageSchemaVersion": "1.0",
            "RequestId": str(uuid.uuid4()),
            "TokenValue": self.token,
            "ClientId": self.client_id,
            "ClientVersion": VERSION,
        }
        self.socket.send(json.dumps(opening))
        self.socket.ping("keepalive")

    def api(self, service):
        # KMS has no endpoint argument: the plugin takes the default one.
        session = boto3.Session(profile_name=self.profile, region_name=self.region)
        return session.client(service, endpoint_url=self.endpoint if service == "ssm" else None)

    def resume(self):
        delay = random.uniform(0.1, 0.2)
        for _ in range(6):
            answer = self.api("ssm").resume_session(SessionId=self.session)
            if not answer.get("TokenValue"):
                raise Closed("")
            self.token = answer["TokenValue"]
            try:
                with self.lock:
                    self.connect()
                return
            except (OSError, websocket.WebSocketException):
                time.sleep(delay)
                delay *= 2
        raise Closed("no connection")

    def transmit(self, frame):
        with self.lock:
            try:
                self.socket.send_binary(frame)
            except (OSError, websocket.WebSocketException):
                pass  # the reader resumes, the resender sends it again

    def receive(self):
        """The next frame, over as many connections as it takes."""
        while True:
            try:
                kind, data = self.socket.recv_data()
                if kind == websocket.ABNF.OPCODE_BINARY:
                    return data
                if kind == websocket.ABNF.OPCODE_CLOSE:
                    raise websocket.WebSocketConnectionClosedException()
                check(kind in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG), f"a frame of opcode {kind}")
            except (OSError, websocket.WebSocketException):
                self.resume()

    # Out

    def send(self, payload_type, payload, plain=False):
        with self.lock:
            if self.seals and payload_type == OUTPUT:
                nonce = os.urandom(12)
                payload = nonce + AESGCM(self.keys[1]).encrypt(nonce, payload, None)
            frame = encode("input_stream_data", self.next_out, 0, payload_type, payload)
            self.sent[self.next_out] = [frame, time.monotonic(), 1]
            self.next_out += 1
        self.transmit(frame)

    def data(self, payload):
        for at in range(0, len(payload), PAYLOAD):
            self.send(OUTPUT, payload[at : at + PAYLOAD])
            time.sleep(0.001)

    def flag(self, number):
        self.send(FLAG, struct.pack(">I", number))

    def resend(self):
        """Every 100 ms the oldest message, if it is late."""
        while True:
            time.sleep(0.1)
            with self.lock:
                if not self.sent:
                    continue
                oldest = self.sent[min(self.sent)]
                if time.monotonic() - oldest[1] <= self.timeout:
                    continue
                oldest[1], oldest[2] = time.monotonic(), oldest[2] + 1
                check(oldest[2] < 3000, "3000 resends")
                frame = oldest[0]
            self.transmit(frame)

    # In

    def messages(self):
        """Numbered messages in order, acknowledged."""
        while True:
            message = Message(self.receive())
            if message.kind == "acknowledge":
                self.take_acknowledgement(message)
            elif message.kind == "channel_closed":
                self.take_end(message)
            elif message.kind == "output_stream_data":
                yield from self.in_order(message)
            else:
                body = message.json("SessionId")
                check(body["SessionId"] == self.session, f"{message.kind} of another session")

    def in_order(self, message):
        check(message.type not in (0, ERROR, SIZE, HANDSHAKE_RESPONSE, CHALLENGE_RESPONSE), f"type {message.type}")
        if message.number < self.expected:
            # The genuine plugin says nothing here, and hangs when an acknowledgement is lost.
            return self.transmit(acknowledgement(message))
        if message.number > self.expected:
            self.buffered[message.number] = message
            return self.transmit(acknowledgement(message))
        while message:
            if self.seals and message.type in (OUTPUT, STDERR, EXIT_CODE):
                sealed = message.payload
                message.payload = AESGCM(self.keys[0]).decrypt(sealed[:12], sealed[12:], None)
            check(len(message.payload) <= PAYLOAD + 3 or message.type == HANDSHAKE_REQUEST, "a long message")
            self.transmit(acknowledgement(message))
            self.expected += 1
            yield message
            message = self.buffered.pop(self.expected, None)

    def take_acknowledgement(self, message):
        body = message.json(
            "AcknowledgedMessageType",
            "AcknowledgedMessageId",
            "AcknowledgedMessageSequenceNumber",
            "IsSequentialMessage",
        )
        number = body["AcknowledgedMessageSequenceNumber"]
        with self.lock:
            check(number < self.next_out, f"{number} was never sent")
            check(body["AcknowledgedMessageType"] == "input_stream_data", "the type of what is acknowledged")
            check(body["IsSequentialMessage"] is True, "IsSequentialMessage")
            self.acknowledged += 1
            if number in self.sent:
                frame, at, _ = self.sent.pop(number)
                check(body["AcknowledgedMessageId"] == str(uuid.UUID(bytes=swap(frame[64:80]))), "the id")
                sample = time.monotonic() - at
                self.variation = 0.75 * self.variation + 0.25 * abs(self.rtt - sample)
                self.rtt = 0.875 * self.rtt + 0.125 * sample
                self.timeout = min(1, self.rtt + max(0.01, 4 * self.variation))

    def take_end(self, message):
        body = message.json(
            "MessageType", "MessageId", "DestinationId", "SessionId", "SchemaVersion", "CreatedDate", "Output"
        )
        check(body["MessageType"] == "channel_closed" and body["SchemaVersion"] == 1, "channel_closed")
        check(body["SessionId"] == self.session, "another session's end")
        check(body["DestinationId"] == self.request["Target"], "another target's end")
        check(int(body["CreatedDate"]) > 0 and uuid.UUID(body["MessageId"]) != message.id, "channel_closed")
        raise Closed(body["Output"])

    # The handshake

    def handshake(self, messages):
        """Until the session runs; its first data, where there was no handshake."""
        for message in messages:
            if message.type == HANDSHAKE_REQUEST:
                self.answer(message.json("AgentVersion", "RequestedClientActions"))
            elif message.type == CHALLENGE_REQUEST:
                sealed = base64.b64decode(message.json("Challenge")["Challenge"])
                plain = AESGCM(self.keys[0]).decrypt(sealed[:12], sealed[12:], None)
                check(len(plain) == 64, "the challenge")
                nonce = os.urandom(12)
                sealed = nonce + AESGCM(self.keys[1]).encrypt(nonce, plain, None)
                self.send(CHALLENGE_RESPONSE, compact({"Challenge": base64.b64encode(sealed).decode()}))
            elif message.type == HANDSHAKE_COMPLETE:
                body = message.json("HandshakeTimeToComplete", "CustomerMessage")
                check(body["HandshakeTimeToComplete"] > 0, "the time of the handshake")
                self.seals = self.keys is not None and self.session_type != "Port"
                if body["CustomerMessage"]:
                    print(body["CustomerMessage"], file=sys.stderr, flush=True)
                return None
            else:
                check(self.agent_version is None, "data within the handshake")
                return message

    def answer(self, body):
        self.agent_version = version(body["AgentVersion"])
        actions, errors = [], []
        for action in body["RequestedClientActions"]:
            check(tuple(action) == ("ActionType", "ActionParameters"), "an action")
            name, given = action["ActionType"], action["ActionParameters"]
            status, result, error = 1, None, ""
            if name == "SessionType":
                check(tuple(given) == ("SessionType", "Properties"), "the session type")
                self.session_type, self.properties = given["SessionType"], given["Properties"]
            elif name == "KMSEncryption":
                try:
                    result = self.data_key(given)
                except Exception as failure:
                    status, error = 2, f"Failed to process action KMSEncryption: {failure}"
                    errors.append(str(failure))
            else:
                status, error = 3, "Unsupported"
            actions.append({"ActionType": name, "ActionStatus": status, "ActionResult": result, "Error": error})
        response = {"ClientVersion": VERSION, "ProcessedClientActions": actions, "Errors": errors or None}
        self.send(HANDSHAKE_RESPONSE, compact(response))

    def data_key(self, given):
        check(set(given) <= {"KMSKeyId", "Challenge"}, "the parameters of KMSEncryption")
        context = {"aws:ssm:SessionId": self.session, "aws:ssm:TargetId": self.request["Target"]}
        result = {"KMSCipherTextKey": None, "KMSCipherTextHash": None}
        # The plugin of that date does not know the challenge; newer ones acknowledge it.
        if given.get("Challenge") and os.environ.get("PLUGIN_CHALLENGE"):
            check(len(base64.b64decode(given["Challenge"])) == 16, "the challenge")
            context["aws:ssm:RandomChallenge"] = given["Challenge"]
            result["ChallengeAcknowledgement"] = True
        if os.environ.get("PLUGIN_WRONG_CONTEXT"):
            context["aws:ssm:TargetId"] = "i-00000000000000000"
        key = self.api("kms").generate_data_key(
            KeyId=given["KMSKeyId"], NumberOfBytes=64, EncryptionContext=context
        )
        self.keys = key["Plaintext"][:32], key["Plaintext"][32:]
        result["KMSCipherTextKey"] = base64.b64encode(key["CiphertextBlob"]).decode()
        return result
