"""What the message gateway refuses, and what it says when a session ends: frame by frame."""

import json
import os
import ssl
import sys
import time
import urllib.request
import uuid

import boto3
import websocket

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "plugin"))
from wire import *

ssm = boto3.client("ssm")


def shell():
    """A session without a handshake."""
    return ssm.start_session(Target=os.environ["TARGET"])


def command():
    """A session with a handshake, for which the SSM Agent waits 15 s."""
    return ssm.start_session(
        Target=os.environ["TARGET"],
        DocumentName="AWS-StartNonInteractiveCommand",
        Parameters={"command": ["sleep 100"]},
    )


def dial(session, url=None):
    context = ssl.create_default_context()
    return websocket.create_connection(url or session["StreamUrl"], sslopt={"context": context}, timeout=30)


def opening(token, **changes):
    body = {
        "MessageSchemaVersion": "1.0",
        "RequestId": str(uuid.uuid4()),
        "TokenValue": token,
        "ClientId": str(uuid.uuid4()),
        "ClientVersion": "1.2.700.0",
    }
    return json.dumps({**body, **changes})


def live(session, token=None):
    socket = dial(session)
    socket.send(opening(token or session["TokenValue"]))
    return socket


def closes(socket):
    """The code of the close frame that comes before any message."""
    while True:
        kind, data = socket.recv_data(control_frame=True)
        if kind == websocket.ABNF.OPCODE_CLOSE:
            return int.from_bytes(data[:2], "big")
        assert kind in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG), (kind, data)


def until(socket, kind):
    while True:
        opcode, data = socket.recv_data()
        assert opcode == websocket.ABNF.OPCODE_BINARY, opcode
        message = Message(data)
        if message.kind == kind:
            return message


def lever(path, body, method="POST"):
    request = urllib.request.Request(
        os.environ["CONTROL"] + path,
        json.dumps(body).encode(),
        {"content-type": "application/json"},
        method=method,
    )
    return json.load(urllib.request.urlopen(request))


one, two = shell(), shell()

# A wrong token, another session's token, no text, a path that is not a session's.
assert closes(live(one, "x" * 500)) == 1008
assert closes(live(one, two["TokenValue"])) == 1008
socket = dial(one)
socket.send_binary(b"\0" * 120)
assert closes(socket) == 1008
unknown = one["StreamUrl"].replace(one["SessionId"], "alice-0123456789abcdef0")
socket = dial(one, unknown)
socket.send(opening(one["TokenValue"]))
assert closes(socket) == 1008
for wrong in (one["StreamUrl"].replace("data-channel", "control-channel"), one["StreamUrl"].split("?")[0]):
    try:
        dial(one, wrong)
        assert False, wrong
    except websocket.WebSocketBadStatusException as refused:
        assert refused.status_code == 404

# A later connection takes the place of an earlier one, which is closed properly.
first = live(one)
until(first, "output_stream_data")
second = live(one)
while True:
    kind, data = first.recv_data(control_frame=True)
    if kind == websocket.ABNF.OPCODE_CLOSE:
        assert int.from_bytes(data[:2], "big") == 1000
        break
# The prompt comes again: nobody has acknowledged it.
message = until(second, "output_stream_data")
assert (message.number, message.type, message.payload) == (0, OUTPUT, b"# "), message.payload

# ResumeSession takes the old token's power.
fresh = ssm.resume_session(SessionId=one["SessionId"])
assert closes(live(one)) == 1008
third = live(one, fresh["TokenValue"])
until(third, "output_stream_data")

# A frame whose digest is wrong is not passed on.
frame = bytearray(encode("input_stream_data", 0, 0, OUTPUT, b"exit\n"))
frame[-1] ^= 1
third.send_binary(bytes(frame))

# Tokens end.
lever("/knobs", {"token_life": 0.05}, "PATCH")
short = shell()
time.sleep(0.1)
assert closes(live(short)) == 1008
lever("/knobs", {"token_life": 3600}, "PATCH")

# The end from outside: the last message has every field, and the socket closes after it.
lever("/end", {"session": one["SessionId"], "output": "ended by an administrator"})
end = until(third, "channel_closed")
body = end.json("MessageType", "MessageId", "DestinationId", "SessionId", "SchemaVersion", "CreatedDate", "Output")
assert body["Output"] == "ended by an administrator" and body["DestinationId"] == os.environ["TARGET"]
kind, data = third.recv_data(control_frame=True)
assert kind == websocket.ABNF.OPCODE_CLOSE and int.from_bytes(data[:2], "big") == 1000
assert closes(live(one, fresh["TokenValue"])) == 1008

# A client that never answers the handshake is told so after 15 s.
began = time.time()
waiting = live(command())
body = json.loads(until(waiting, "output_stream_data").payload)
assert list(body) == ["AgentVersion", "RequestedClientActions"]
parameters = {"SessionType": "NonInteractiveCommands", "Properties": None}
assert body["RequestedClientActions"] == [{"ActionType": "SessionType", "ActionParameters": parameters}]
end = json.loads(until(waiting, "channel_closed").payload)
assert "Handshake timed out" in end["Output"], end
assert time.time() - began > 14

# What every session begins with: publication control, with the session in it.
late = shell()
socket = live(late)
kind, data = socket.recv_data()
message = Message(data)
assert message.kind in ("start_publication", "pause_publication")
assert json.loads(message.payload) == {"SessionId": late["SessionId"]}
