"""A safetensors file with facts in its header and a checksum over every byte: read whole and right, or refused."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
from torch import Tensor

from bitsplit.errors import InputError, one_line
from bitsplit.files import whole_file

FORMAT = 1  # of the files that this code writes; it reads no later one
# How a file begins, behind the 8 bytes with the length of its header; the digits of the checksum follow.
_BEGINNING = b'{"__metadata__":{"bitsplit":"{\\"sha256\\":\\"'
_DIGITS = slice(8 + len(_BEGINNING), 8 + len(_BEGINNING) + 64)


def write_sealed(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Puts `tensors`, and `facts` as JSON, into one file at `path`, whole or not at all; InputError where it cannot be
    written.

    The checksum is SHA-256 of the file with zeros in the place of the checksum's own 64 digits.
    """
    text = json.dumps({"sha256": "0" * 64, "format": FORMAT, **facts}, separators=(",", ":"))
    content = bytearray(safetensors.torch.save(tensors, {"bitsplit": text}))
    content[_DIGITS] = hashlib.sha256(content).hexdigest().encode()
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another path") from error


def read_sealed(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Facts and tensors of a file from `write_sealed`; InputError for anything else. No code in the file is run."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file that bitsplit.save wrote") from error
    if content[8 : _DIGITS.start] != _BEGINNING:
        raise InputError(f"{path} is no file of a quantized network; give one that bitsplit.save wrote")
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["bitsplit"])
        if facts["format"] > FORMAT:
            raise InputError(
                f"{path} has format {facts['format']}, and this bitsplit reads up to {FORMAT}; install a newer one"
            )
        zeros = content[: _DIGITS.start] + b"0" * 64 + content[_DIGITS.stop :]
        if hashlib.sha256(zeros).hexdigest() != facts["sha256"]:
            raise ValueError("its checksum is another one")
        return facts, safetensors.torch.load(content)
    except InputError:
        raise
    except Exception as error:  # whatever damaged bytes may lead to
        raise InputError(f"{path} is damaged ({one_line(error)}); copy or save it again") from error
