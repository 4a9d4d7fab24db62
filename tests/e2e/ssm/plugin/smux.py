"""smux version 1, the client's side, as small as it can be."""

import socket
import struct
import threading

from wire import check

SYN, FIN, PSH, NOP = 0, 1, 2, 3


class Mux:
    """`out` takes the bytes of the one stream below."""

    def __init__(self, out):
        self.out, self.lock = out, threading.Lock()
        self.next_stream, self.streams, self.buffer = 3, {}, b""
        self.nops = 0

    def frame(self, command, stream, data=b""):
        with self.lock:
            self.out(struct.pack("<BBHI", 1, command, len(data), stream) + data)

    def open(self, connection):
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.streams[stream] = connection
        self.frame(SYN, stream)
        threading.Thread(target=self.up, args=(stream, connection), daemon=True).start()

    def up(self, stream, connection):
        """The local connection's bytes. Its end, even of one direction, ends the stream."""
        try:
            while data := connection.recv(32768):
                self.frame(PSH, stream, data)
        except OSError:
            pass
        self.close(stream)

    def close(self, stream):
        connection = self.streams.pop(stream, None)
        if connection:
            self.frame(FIN, stream)
            try:
                # Closing alone does not wake the thread that reads it.
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def take(self, data):
        self.buffer += data
        while len(self.buffer) >= 8:
            version, command, length, stream = struct.unpack_from("<BBHI", self.buffer)
            check(version == 1 and command in (FIN, PSH, NOP), f"smux {version} {command}")
            check(command == PSH or length == 0, "data in a control frame")
            if len(self.buffer) < 8 + length:
                return
            data, self.buffer = self.buffer[8 : 8 + length], self.buffer[8 + length :]
            if command == NOP:
                check(stream == 0, "a NOP of a stream")
                self.nops += 1
            elif command == FIN:
                self.close(stream)
            elif stream in self.streams:
                try:
                    self.streams[stream].sendall(data)
                except OSError:
                    self.close(stream)
