#!/usr/bin/env python3
"""Makes the golden files of a small log: a second implementation of what `audit` writes.

From the texts alone (RFC 6962 section 2.1, C2SP tlog-tiles, tlog-checkpoint and signed-note,
RFC 8032), with nothing but the standard library and the definitions taken literally. Run it in
this folder; the files are committed, so that the tests need no Python.
"""

import base64
import hashlib
import json
import os

SIZE = 600
NAME = "golden-1"
SEED = bytes(range(32))


def entry(i):
    return b"entry %d " % i + bytes((i * j) % 251 for j in range(i % 40))


# RFC 6962, 2.1: Merkle Hash Trees.


def sha256(data):
    return hashlib.sha256(data).digest()


def split(n):
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(d):
    if len(d) == 0:
        return sha256(b"")
    if len(d) == 1:
        return sha256(b"\x00" + d[0])
    k = split(len(d))
    return sha256(b"\x01" + mth(d[:k]) + mth(d[k:]))


def path(m, d):
    if len(d) == 1:
        return []
    k = split(len(d))
    if m < k:
        return path(m, d[:k]) + [mth(d[k:])]
    return path(m - k, d[k:]) + [mth(d[:k])]


def proof(m, d):
    return subproof(m, d, True)


def subproof(m, d, complete):
    if m == len(d):
        return [] if complete else [mth(d)]
    k = split(len(d))
    if m <= k:
        return subproof(m, d[:k], complete) + [mth(d[k:])]
    return subproof(m - k, d[k:], False) + [mth(d[:k])]


# RFC 8032, 5.1: Ed25519, as its definitions read.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def recover_x(y, sign):
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return P - x if x & 1 != sign else x


BY = 4 * pow(5, P - 2, P) % P
BASE = (recover_x(BY, 0), BY)


def add(p, q):
    (x1, y1), (x2, y2) = p, q
    t = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, P - 2, P) % P,
    )


def multiply(p, n):
    q = (0, 1)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q


def compress(p):
    x, y = p
    return (y | (x & 1) << 255).to_bytes(32, "little")


def expand(seed):
    h = hashlib.sha512(seed).digest()
    a = int.from_bytes(h[:32], "little")
    a &= (1 << 254) - 8
    a |= 1 << 254
    return a, h[32:]


def public(seed):
    return compress(multiply(BASE, expand(seed)[0]))


def sign(seed, message):
    a, prefix = expand(seed)
    key = compress(multiply(BASE, a))
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    big_r = compress(multiply(BASE, r))
    h = int.from_bytes(hashlib.sha512(big_r + key + message).digest(), "little") % L
    return big_r + ((r + h * a) % L).to_bytes(32, "little")


# C2SP signed-note and tlog-checkpoint.


def key_id(name, key):
    return sha256(name.encode() + b"\n" + b"\x01" + key)[:4]


def checkpoint(entries):
    text = "%s\n%d\n%s\n" % (NAME, len(entries), base64.b64encode(mth(entries)).decode())
    signature = key_id(NAME, public(SEED)) + sign(SEED, text.encode())
    return text + "\n\u2014 %s %s\n" % (NAME, base64.b64encode(signature).decode())


# C2SP tlog-tiles.


def place(n, width):
    groups = ["%03d" % (n % 1000)]
    while n >= 1000:
        n //= 1000
        groups.insert(0, "x%03d" % (n % 1000))
    return "/".join(groups) + ("" if width == 256 else ".p/%d" % width)


def put(name, data):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as file:
        file.write(data)


def main():
    entries = [entry(i) for i in range(SIZE)]
    for n in range(0, (SIZE + 255) // 256):
        part = entries[n * 256 : (n + 1) * 256]
        data = b"".join(len(e).to_bytes(2, "big") + e for e in part)
        put("tile/entries/" + place(n, len(part)), data)
    level = 0
    while SIZE // 256**level:
        hashes = [
            mth(entries[i * 256**level : (i + 1) * 256**level])
            for i in range(SIZE // 256**level)
        ]
        for n in range(0, (len(hashes) + 255) // 256):
            part = hashes[n * 256 : (n + 1) * 256]
            put("tile/%d/%s" % (level, place(n, len(part))), b"".join(part))
        level += 1
    put("checkpoint", checkpoint(entries).encode())
    key = public(SEED)
    name_and_id = "%s+%s" % (NAME, key_id(NAME, key).hex())
    put(
        "expected.json",
        json.dumps(
            {
                "size": SIZE,
                "seed": SEED.hex(),
                "vkey": name_and_id + "+" + base64.b64encode(b"\x01" + key).decode(),
                "skey": "PRIVATE+KEY+"
                + name_and_id
                + "+"
                + base64.b64encode(b"\x01" + SEED).decode(),
                "roots": {str(n): mth(entries[:n]).hex() for n in (0, 1, 2, 255, 256, 257, 512, 600)},
                "inclusion": {
                    str(i): [h.hex() for h in path(i, entries)]
                    for i in (0, 1, 255, 256, 511, 512, 599)
                },
                "consistency": {
                    str(n): [h.hex() for h in proof(n, entries)]
                    for n in (1, 2, 255, 256, 257, 512, 599, 600)
                },
            },
            indent=1,
        ).encode()
        + b"\n",
    )


if __name__ == "__main__":
    main()
