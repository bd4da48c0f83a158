"""What happens to files: a byte changed, content cut, doubled, or lost altogether."""

import random


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with a byte changed, cut, doubled, or lost altogether."""
    place = chance.randrange(len(content))
    kind = chance.choice(["flip", "flip", "flip", "cut", "insert", "zeros", "empty"])
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]
    if kind == "zeros":
        return content[:place] + bytes(len(content[place : place + 512])) + b"\1" + content[place + 513 :]
    return {"cut": content[:place], "insert": content[:place] + b"x" + content[place:], "empty": b""}[kind]
