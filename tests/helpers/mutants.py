"""Random changes of a file."""

import random

_WORDS = (
    b"\x94",
    b"h\x00",
    b"0",
    b"(",
    b"t",
    b"\x85",
    b"R",
    b"b",
    b"s",
    b"u",
    b"Q",
    b"c",
    b"\n",
    b"\xff\xff\xff\xff",
    b"\0",
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, cuts, copies and swaps of pieces, words of the format."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not mutant:
            break
        here, there = rng.randrange(len(mutant)), rng.randrange(len(mutant))
        length = rng.randint(1, 16)
        kind = rng.randrange(7)
        if kind == 0:
            mutant[here] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[here] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del mutant[here : here + length]
        elif kind == 3:
            mutant[here:here] = mutant[there : there + length]
        elif kind == 4:
            mutant[here : here + length] = mutant[there : there + length]
        elif kind == 5:
            mutant[here:here] = rng.choice(_WORDS)
        else:
            mutant = mutant[: max(1, here)] if rng.random() < 0.2 else mutant
    return bytes(mutant)
