"""Damages the bytes of a golden file, the same way for the same number."""

import random

_TELLING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01", b"\n", b"\x12", b"NaN", b"1e999", b"[" * 64)


def mutated(data: bytes, seed: int) -> bytes:
    """``data`` with one to eight changes; one case in 16 is noise."""
    chance = random.Random(seed)
    if chance.random() < 1 / 16:
        return chance.randbytes(chance.randrange(2000))
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(out) + 1)
        end = min(len(out), at + chance.choice((1, 2, 4, 8, 100, 4000)))
        match chance.randrange(6):
            case 0:
                out[at:end] = chance.randbytes(end - at)
            case 1:
                del out[at:end]
            case 2:
                out[at:at] = out[at:end]
            case 3:
                out[at:at] = chance.choice(_TELLING) * chance.choice((1, 1, 5, 300))
            case 4:
                del out[at:]
            case _:
                for place in range(at, min(end, at + 8)):
                    out[place] ^= 1 << chance.randrange(8)
    return bytes(out)
