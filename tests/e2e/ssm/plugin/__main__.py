"""A stand-in for Amazon's session-manager-plugin, which the tests cannot install.

It was written from the protocol's description and shares no code with the project, so that the lab's two halves do
not merely agree with each other. Where the genuine plugin is known to lose or hang, this one does better: it is to
judge the other side.
"""

import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import time
import tty

import channel as channels
from channel import Channel, Closed, version
from smux import Mux
from wire import *


def terminal_size():
    try:
        size = os.get_terminal_size(0)
        return {"cols": size.columns, "rows": size.lines}
    except OSError:
        return {"cols": 300, "rows": 100}


def sizes(channel):
    last = None
    while True:
        size = terminal_size()
        if size != last:
            channel.send(SIZE, compact(size))
            last = size
        time.sleep(0.5)


def start(target, *args):
    threading.Thread(target=guarded, args=(target, *args), daemon=True).start()


def guarded(target, *args):
    try:
        target(*args)
    except Violation as violation:
        die(violation)


def die(violation):
    print(f"protocol violation: {violation}", file=sys.stderr, flush=True)
    os._exit(97)


def keyboard(channel, at_end):
    while data := os.read(0, 1024):
        channel.data(data)
    at_end()


def shell(channel, messages, first):
    start(sizes, channel)

    def signalled(number, _):
        channel.data({signal.SIGINT: b"\x03", signal.SIGQUIT: b"\x1c", signal.SIGTSTP: b"\x1a"}[number])

    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signalled)
    before = None
    if os.isatty(0):
        before = termios.tcgetattr(0)
        tty.setcbreak(0)
    try:
        # Input that ends does not end the session here: the tests want the output.
        start(keyboard, channel, lambda: None)
        while True:
            message = first or next(messages)
            first = None
            if message.type == OUTPUT:
                os.write(1, message.payload)
            elif message.type == STDERR:
                os.write(2, message.payload)
            elif message.type == EXIT_CODE:
                name, code = message.payload.decode().split(": ")
                check(name == "EXIT_CODE", "the exit code's text")
                print(f"exit code {int(code)}", file=sys.stderr, flush=True)
            else:
                check(False, f"payload type {message.type} in a shell")
    finally:
        if before:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def stdio(channel, messages):
    """AWS-StartSSHSession: the end of our input just ends us."""
    start(keyboard, channel, lambda: os._exit(0))
    for message in messages:
        check(message.type == OUTPUT, f"payload type {message.type} in a stream")
        os.write(1, message.payload)


def listen(channel):
    listener = socket.create_server(("127.0.0.1", int(channel.properties["localPortNumber"] or 0)))
    print(f"Port {listener.getsockname()[1]} opened for sessionId {channel.session}.", flush=True)
    print("Waiting for connections...", flush=True)

    def goodbye(*_):
        channel.flag(TERMINATE_SESSION)
        # Until it is sent; the genuine one does not wait for anything else either.
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM):
        signal.signal(number, goodbye)
    return listener


def multiplexed(channel, messages):
    mux, listener = Mux(channel.data), listen(channel)

    def accept():
        while True:
            connection, _ = listener.accept()
            mux.open(connection)

    start(accept)
    for message in messages:
        if message.type == FLAG:
            (number,) = struct.unpack(">I", message.payload)
            check(number == CONNECT_TO_PORT_ERROR, f"flag {number}")
            print("Connection to destination port failed, check SSM Agent logs.", flush=True)
        else:
            check(message.type == OUTPUT, f"payload type {message.type} in a port session")
            mux.take(message.payload)


def basic(channel, messages):
    listener = listen(channel)
    current = []

    def accept():
        while True:
            connection, _ = listener.accept()
            current[:] = [connection]
            try:
                while data := connection.recv(1024):
                    channel.data(data)
            except OSError:
                pass
            connection.close()
            channel.flag(DISCONNECT_TO_PORT)

    start(accept)
    for message in messages:
        if message.type == OUTPUT and current:
            try:
                current[0].sendall(message.payload)
            except OSError:
                pass


def run(arguments):
    response, region, operation, profile, request, endpoint = arguments
    check(operation == "StartSession", operation)
    if response.startswith("AWS_SSM_START_SESSION_RESPONSE"):
        response = os.environ[response]
    channel = Channel(json.loads(response), region, profile, json.loads(request), endpoint)
    print(f"\nStarting session with SessionId: {channel.session}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    channel.connect()
    start(channel.resend)
    try:
        messages = channel.messages()
        first = channel.handshake(messages)
        if channel.session_type != "Port":
            shell(channel, messages, first)
        elif channel.properties.get("type") != "LocalPortForwarding":
            stdio(channel, messages)
        elif channel.agent_version > version("3.0.196.0"):
            multiplexed(channel, messages)
        else:
            basic(channel, messages)
    except Closed as closed:
        if str(closed):
            print(f"\n\nSessionId: {channel.session} : {closed}\n", flush=True)
    print(f"\n\nExiting session with sessionId: {channel.session}.\n", flush=True)
    sys.stdout.flush()
    # Threads that read are not waited for.
    os._exit(0)


if sys.argv[1:] == ["--version"]:
    print(channels.VERSION)
else:
    try:
        run(sys.argv[1:])
    except Violation as violation:
        die(violation)
