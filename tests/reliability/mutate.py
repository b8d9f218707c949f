"""Changes of good inputs, drawn from a seeded generator: bytes of files, texts, and nested values of headers."""

import copy
import random
import re
from typing import Any

# Numbers and words at which readers of text break.
WORDS = [
    b"1e155", b"-1e300", b"1e400", b"nan", b"inf", b"-inf", b"1e-320", b"0", b"-0", b"-1", b"2147483648", b"99999999999999999999",
    b"1e9", b"1000000", b"1_000", b"0x10", b"1,5", b"1.0D+00", b"********", b"", b"T", b"None", b"null", b"~", b"[]", b"{}", b"\xc2\xb2",
    b"\xd9\xa1", b"\xff\xfe", b"\x00", b"'", b'"', b"\\", b"%s", b"{0}", b"${x}", b"${oc.env:HOME}", b"!!python/object:os.system", b"&a *a",
    b"Xx", b"X", b"H", b"1" * 400, b"(" * 300, b"[" * 300, b":::", b"R:100000000", b"-", b"=", b"=" * 9, b"#", b"\r", b"\t", b";", b"\x1a",
]  # fmt: skip
NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
TOKEN = re.compile(rb"[^\s,;:=\"'{}\[\]()]+")
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 10**9, 10**30, -(10**12), 0.5, -2.5, 1e155, 1e-300, float("nan"), float("inf"), "", "x", "none", "1", "a" * 300,
    [], [[]], [0], [None], ["H"], {}, {"x": 1}, [1, [2, [3, [4]]]], "float64", "energy", "../../etc/passwd", "\u0000", "²",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four changes of a file."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(data, rng, others)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    # The start of a file, where its header is, is drawn more often.
    return rng.randrange(max(1, len(data) if rng.random() < 0.6 else min(len(data), 300)))


def _flip(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    if data:
        at = _place(data, rng)
        new = rng.choice(
            (
                b"\x00",
                b"\xff",
                b"\x7f",
                b"\x80",
                b"\xff\xff\xff\xff",
                b"\xff\xff\xff\x7f",
                b"\x00" * 8,
                rng.randbytes(8),
            )
        )
        changed[at : at + len(new)] = new
    return bytes(changed)


def _cut(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 1, 4, 30, 300)) :]


def _insert(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice(WORDS) + data[at:]


def _repeat(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = _place(data, rng)
    piece = data[at : at + rng.choice((1, 10, 100))]
    return data[:at] + piece * rng.choice((2, 2, 5, 50)) + data[at:]


def _splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _number(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return _replaced(data, NUMBER, rng)


def _token(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return _replaced(data, TOKEN, rng)


def _replaced(data: bytes, pattern: re.Pattern[bytes], rng: random.Random) -> bytes:
    found = list(pattern.finditer(data, 0, min(len(data), 200_000)))
    if not found:
        return _insert(data, rng, [])
    early = found[:20] if rng.random() < 0.4 else found
    match = rng.choice(early)
    new = rng.choice(WORDS) if rng.random() < 0.7 else rng.choice(found).group()
    return data[: match.start()] + new + data[match.end() :]


def _lines(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    a, b = (rng.randrange(len(lines)) for _ in range(2))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[a]
    elif kind == 1:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 2:
        lines.insert(a, lines[b])
    else:
        lines[a] = b""
    return b"\n".join(lines)


_CHANGES = (
    _flip,
    _set,
    _cut,
    _remove,
    _insert,
    _repeat,
    _splice,
    _number,
    _number,
    _number,
    _token,
    _token,
    _lines,
    _lines,
)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """One to three changes of nested dictionaries and lists: a value replaced, removed, nested, or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = list(_nodes(tree))
        if not nodes:
            return rng.choice(VALUES)
        parent, key = rng.choice(nodes)
        kind = rng.random()
        if kind < 0.65:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.75:
            del parent[key]
        elif kind < 0.85:
            parent[key] = rng.choice(([parent[key]], {"x": parent[key]}, str(parent[key])))
        elif kind < 0.95:
            other, name = rng.choice(nodes)
            if name in other if isinstance(other, dict) else name < len(other):
                parent[key] = copy.deepcopy(other[name])
        elif isinstance(parent, dict):
            parent[rng.choice(("x", "", "members", "layers", str(key) + "s"))] = parent[key]
    return tree


def _nodes(tree: Any) -> Any:
    """(container, key) of every value."""
    if isinstance(tree, dict):
        pairs = list(tree.items())
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))
    else:
        return
    for key, value in pairs:
        yield tree, key
        yield from _nodes(value)
