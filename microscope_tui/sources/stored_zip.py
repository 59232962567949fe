"""The directory of a zip file whose members are stored as they are (no compression).

``torch.save`` writes such files. Members are only located here, never copied: what they hold is
read later, piece by piece. The archive must begin at the first byte and end with its directory.
"""

import struct
from dataclasses import dataclass

from microscope_tui.runlog import safe_text
from microscope_tui.sources.exact_bytes import Bytes
from microscope_tui.sources.reader import Unreadable

MOST_MEMBERS = 1 << 17
"""A member takes some hundred bytes of memory; a dump has one for each tensor."""
_MOST_NAME = 512
_LOCAL, _ENTRY, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64, _LOCATOR64 = b"PK\6\6", b"PK\6\7"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_END_BYTES, _LOCATOR_BYTES, _END64_BYTES, _LOCAL_BYTES, _ENTRY_BYTES = 22, 20, 56, 30, 46


class Unfinished(Unreadable):
    """The file does not end as a zip file does: it is still being written, or was cut off."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where the header of a member is, and how long its data are."""

    header: int
    size: int


def members(data: Bytes) -> dict[str, Member]:
    """The members by name.

    Raises:
        Unfinished: the end of the archive is missing.
        Unreadable: damaged, encrypted, compressed, or with parts that overlap or lie outside.
    """
    number, length, start = _directory(data)
    if number > MOST_MEMBERS:
        raise data.broken(f"{number:,} members, at most {MOST_MEMBERS:,} are read")
    directory = data.read(start, length, "the directory of the zip file")
    found: dict[str, Member] = {}
    at = 0
    for _ in range(number):
        name, member, at = _entry(data, directory, at)
        if name in found:
            raise data.broken(f"two members have the name {safe_text(name, 40)!r}")
        found[name] = member
    end = 0
    for member in sorted(found.values(), key=lambda member: member.header):
        if member.header < end or member.header + _LOCAL_BYTES + member.size > start:
            raise data.broken("members overlap or lie outside the file")
        end = member.header + _LOCAL_BYTES + member.size
    return found


def start_of(data: Bytes, member: Member) -> int:
    """Offset of the data of a member in the file.

    Raises:
        Unreadable: there is no member, or its data would not be inside the file.
    """
    header = data.read(member.header, _LOCAL_BYTES, "the header of a member")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    start = member.header + _LOCAL_BYTES + int(name_length) + int(extra_length)
    if not header.startswith(_LOCAL) or start + member.size > data.size:
        raise data.broken("a member is not where the directory says; copy the file again")
    return start


def _directory(data: Bytes) -> tuple[int, int, int]:
    """Number of members, and length and offset of the directory."""
    end_at = data.size - _END_BYTES
    end = data.read(end_at, _END_BYTES, "the end of the zip file") if end_at >= 0 else b""
    if not end.startswith(_END):
        raise Unfinished(
            f"{data.name}: the end of the zip file is missing: it is still being written, or was "
            "cut off; write the dump again"
        )
    disk, first, here, number, length, start, comment = struct.unpack_from("<4H2LH", end, 4)
    if disk or first or here != number or comment:
        raise data.broken("not a zip file as torch.save writes it (several parts, or a comment)")
    locator_at = end_at - _LOCATOR_BYTES
    locator = data.read(max(0, locator_at), _LOCATOR_BYTES, "the end of the zip file")
    if number == _FULL16 or _FULL32 in (length, start) or locator.startswith(_LOCATOR64):
        if not locator.startswith(_LOCATOR64):
            raise data.broken("the 64-bit end of the zip file is missing; copy the file again")
        end_at = struct.unpack_from("<Q", locator, 8)[0]
        end64 = data.read(end_at, _END64_BYTES, "the 64-bit end of the zip file")
        number, length, start = struct.unpack_from("<QQQ", end64, 32)
        if not end64.startswith(_END64):
            raise data.broken("the 64-bit end of the zip file is damaged; copy the file again")
    if number * _ENTRY_BYTES > length or start + length > end_at:
        raise data.broken("the directory of the zip file is damaged; copy the file again")
    return number, length, start


def _entry(data: Bytes, directory: bytes, at: int) -> tuple[str, Member, int]:
    """Name and place of the member at ``at``, and where the next entry begins."""
    fixed = directory[at : at + _ENTRY_BYTES]
    if len(fixed) < _ENTRY_BYTES or not fixed.startswith(_ENTRY):
        raise data.broken("the directory of the zip file is damaged; copy the file again")
    flags, method = struct.unpack_from("<2H", fixed, 8)
    stored, size, name_length, extra_length, comment_length = struct.unpack_from("<2L3H", fixed, 20)
    header = struct.unpack_from("<L", fixed, 42)[0]
    names_at = at + _ENTRY_BYTES
    raw = directory[names_at : names_at + name_length]
    name = raw.decode("utf-8", "replace")
    shown = safe_text(name, 40)
    if flags & 1 or method:
        raise data.broken(
            f"member {shown!r} is encrypted or compressed; torch.save does neither, save it again"
        )
    extra_at = names_at + name_length
    extra = directory[extra_at : extra_at + extra_length]
    size, stored, header = _wide(extra, size, stored, header)
    if size != stored or len(raw) != name_length or len(raw) > _MOST_NAME:
        raise data.broken(f"member {shown!r} has a damaged entry; copy the file again")
    return name, Member(header, size), extra_at + extra_length + comment_length


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """The numbers that did not fit into 32 bits, from the 64-bit extra field."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            wide = extra[at + 4 : at + 4 + length]
            numbers = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
            return tuple(next(numbers, v) if v == _FULL32 else v for v in values)
        at += 4 + length
    return values
