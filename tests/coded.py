"""What tests ask of coded data: the whole state of a message, and a file whose checksum fits again."""

import struct
import zlib

from vdbjax.coding.rans import Message


def state(message: Message) -> tuple[list[int], list[int]]:
    """Its heads and its words."""
    return message.heads.tolist(), message.words.tolist()


def resealed(data: bytes) -> bytes:
    """A file whose checksum fits again: what its author, and no accident, has written."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))
