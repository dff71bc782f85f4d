"""The kernel's IMA measurement list: read in both of its forms, and checked as far as it can be.

The list is append-only; each entry holds a template's fields and the SHA-1 over them that went into
PCR 10. A violation (a file that was open for writing while it was measured, "open_writers", or
opened for writing while it was being read, "ToMToU") is an entry whose template hash is zero: what
was read then is not known. The list says that there was one, not which of the two. Pure.

Source: Documentation/security/IMA-templates.rst; security/integrity/ima/ima_fs.c, ima_template.c.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from rootseal.errors import EncodingError, VerificationError

TEMPLATE_HASH_BYTES = 20
FIELD_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 255
PCR_MAX = 23
BOOT_AGGREGATE = b"boot_aggregate"

_TEMPLATES: Mapping[str, Tuple[str, ...]] = {
    "ima-ng": ("d-ng", "n-ng"),
    "ima-sig": ("d-ng", "n-ng", "sig"),
    "ima-buf": ("d-ng", "n-ng", "buf"),
    "ima-ngv2": ("d-ngv2", "n-ng"),
    "ima-sigv2": ("d-ngv2", "n-ng", "sig"),
}
_DIGEST_BYTES: Mapping[str, int] = {
    "md5": 16,
    "sha1": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "rmd160": 20,
    "sm3": 32,
    "sha3-256": 32,
    "sha3-384": 48,
    "sha3-512": 64,
}
_KINDS = ("ima", "verity")
_VIOLATION = bytes(TEMPLATE_HASH_BYTES)
_EXTENDED_FOR_VIOLATION = b"\xff" * TEMPLATE_HASH_BYTES


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One entry.

    Attributes:
        pcr: The PCR it was extended into (10 unless the policy says otherwise).
        template_hash: SHA-1 over the template's fields, 20 bytes; zero for a violation.
        template: `ima-ng`, `ima-sig`, `ima-buf` or a version 2 of the first two.
        kind: `ima` (digest of the content) or `verity` (fs-verity digest; version 2 only).
        algorithm: Hash algorithm of the digest.
        digest: Of the file's content, or of the buffer.
        name: Path as the kernel saw it, or the event's name. The kernel writes a space as `_`.
        extra: Signature (`ima-sig`) or buffer (`ima-buf`); empty otherwise.
    """

    pcr: int
    template_hash: bytes
    template: str
    kind: str
    algorithm: str
    digest: bytes
    name: bytes
    extra: bytes = b""

    @property
    def is_violation(self) -> bool:
        """Whether the kernel could not vouch for what was read."""
        return self.template_hash == _VIOLATION

    @property
    def is_file(self) -> bool:
        """Whether it is about a file that has a path, and not a buffer or the boot."""
        return self.template != "ima-buf" and self.name.startswith(b"/")

    @property
    def is_nameless_file(self) -> bool:
        """Whether it is about a file without a path (memfd, or on a detached mount).

        The kernel gives the last component of its name, `boot_aggregate` not excepted; only the
        first entry of a list is about the boot.
        """
        return self.template != "ima-buf" and not self.name.startswith(b"/")


def parse_binary(data: bytes, *, byte_order: str = sys.byteorder) -> Tuple[Measurement, ...]:
    """Read `binary_runtime_measurements`.

    Args:
        data: The list, or a part of it that begins and ends between entries.
        byte_order: That of the kernel that wrote it (`little` with `ima_canonical_fmt`).

    Raises:
        EncodingError: Cut short, an unknown template, or a field that breaks its form; says
            where.
    """
    return tuple(_entries(_Reader(data, "<" if byte_order == "little" else ">")))


class _Reader:
    """Bounded reads from the binary list."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data = data
        self.order = order
        self.position = 0
        self._number = struct.Struct(f"{order}I")

    def take(self, size: int, maximum: int) -> bytes:
        if size > maximum or size > len(self.data) - self.position:
            raise EncodingError(
                f"the IMA list is cut short or malformed at byte {self.position} (length {size})"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self) -> int:
        return int(self._number.unpack(self.take(4, 4))[0])

    def sized(self, maximum: int) -> bytes:
        return self.take(self.number(), maximum)


def _entries(reader: _Reader) -> Iterator[Measurement]:
    while reader.position < len(reader.data):
        start = reader.position
        pcr = reader.number()
        template_hash = reader.take(TEMPLATE_HASH_BYTES, TEMPLATE_HASH_BYTES)
        template = reader.sized(NAME_BYTES_MAX).decode("ascii", "replace")
        names = _TEMPLATES.get(template)
        if names is None:
            raise EncodingError(
                f"the IMA list has the template {template!r} at byte {start}; ima-ng, ima-sig and "
                "ima-buf are read (boot with ima_template=ima-ng)"
            )
        body = _Reader(reader.sized(FIELD_BYTES_MAX * len(names)), reader.order)
        fields = [body.sized(FIELD_BYTES_MAX) for _ in names]
        if body.position != len(body.data):
            raise EncodingError(f"the IMA entry at byte {start} has more fields than {template}")
        yield _measurement(pcr, template_hash, template, fields)


def _measurement(
    pcr: int, template_hash: bytes, template: str, fields: Sequence[bytes]
) -> Measurement:
    kind, algorithm, found = _digest_field(fields[0], version_2=template.endswith("v2"))
    if not fields[1].endswith(b"\0") or b"\0" in fields[1][:-1]:
        raise EncodingError(f"an IMA entry ({template}) has a name that is not one C string")
    if pcr > PCR_MAX:
        raise EncodingError(f"an IMA entry is for PCR {pcr}; there are {PCR_MAX + 1}")
    extra = fields[2] if len(fields) > 2 else b""
    return Measurement(pcr, template_hash, template, kind, algorithm, found, fields[1][:-1], extra)


def _digest_field(field: bytes, *, version_2: bool) -> Tuple[str, str, bytes]:
    """Kind, algorithm and digest of `d-ng` (`sha256:\\0…`) or `d-ngv2` (`ima:sha256:\\0…`)."""
    prefix, zero, found = field.partition(b"\0")
    parts = prefix.decode("ascii", "replace").split(":")
    if not zero or parts.pop() != "" or len(parts) != (2 if version_2 else 1):
        raise EncodingError(f"an IMA entry has the malformed digest field {field[:40]!r}")
    kind, algorithm = parts if version_2 else ["ima", parts[0]]
    _check_digest(kind, algorithm, found)
    return kind, algorithm, found


def _check_digest(kind: str, algorithm: str, found: bytes) -> None:
    if kind not in _KINDS:
        raise EncodingError(f"an IMA entry has the digest kind {kind!r}")
    if _DIGEST_BYTES.get(algorithm) != len(found):
        raise EncodingError(f"an IMA entry has {len(found)} bytes as its {algorithm} digest")


def parse_ascii(data: bytes) -> Tuple[Measurement, ...]:
    """Read `ascii_runtime_measurements`.

    A path with a newline in it cannot be told from two lines there: it is refused; the binary list
    holds every path.

    Raises:
        EncodingError: Names the line.
    """
    if data and not data.endswith(b"\n"):
        raise EncodingError("the IMA list is cut short: its last line has no end")
    found = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            found.append(_parse_line(line))
        except (EncodingError, ValueError) as error:
            raise EncodingError(f"line {number} of the IMA list: {error}") from None
    return tuple(found)


def _parse_line(line: bytes) -> Measurement:
    words = line.split(b" ")
    if len(words) < 5:
        raise EncodingError("fewer than five words")
    pcr, template = int(words[0].decode("ascii")), words[2].decode("ascii")
    if template not in _TEMPLATES or not 0 <= pcr <= PCR_MAX:
        raise EncodingError(f"template {template!r} or PCR {pcr} is not known")
    template_hash = bytes.fromhex(words[1].decode("ascii"))
    if len(template_hash) != TEMPLATE_HASH_BYTES:
        raise EncodingError("the template hash is not 20 bytes")
    *kinds, algorithm, hexadecimal = words[3].decode("ascii").split(":")
    if len(kinds) != template.endswith("v2"):
        raise EncodingError("a malformed digest")
    found = bytes.fromhex(hexadecimal)
    kind = kinds[0] if kinds else "ima"
    _check_digest(kind, algorithm, found)
    has_extra = len(_TEMPLATES[template]) > 2
    if len(words) > (6 if has_extra else 5):
        raise EncodingError("more words than the template has fields")
    extra = bytes.fromhex(words[5].decode("ascii")) if len(words) > 5 else b""
    return Measurement(pcr, template_hash, template, kind, algorithm, found, words[4], extra)


def template_hash(entry: Measurement) -> bytes:
    """The SHA-1 that an entry's fields give (IMA-templates.rst): each with its length before it."""
    prefix = f"{entry.algorithm}:\0"
    if entry.template.endswith("v2"):
        prefix = f"{entry.kind}:{prefix}"
    fields: List[bytes] = [prefix.encode("ascii") + entry.digest, entry.name + b"\0"]
    if len(_TEMPLATES[entry.template]) > 2:
        fields.append(entry.extra)
    state = hashlib.sha1(usedforsecurity=False)
    for field in fields:
        state.update(struct.pack("<I", len(field)) + field)
    return state.digest()


def check_list(entries: Sequence[Measurement], *, pcrs: Optional[Mapping[int, bytes]]) -> bytes:
    """Check a whole list: entries against their template hashes, and the boot aggregate.

    Args:
        entries: From the first on.
        pcrs: SHA-256 PCRs 0 to 9 of the TPM; None if there is no TPM, where the kernel measures
            a boot aggregate of zeros.

    Returns:
        What PCR 10 of the SHA-1 bank is after these entries, 20 bytes.

    Raises:
        VerificationError: Names the entry.
    """
    if not entries or entries[0].name != BOOT_AGGREGATE or entries[0].template == "ima-buf":
        raise VerificationError("the IMA list does not begin with the boot aggregate")
    if entries[0].is_violation or entries[0].kind != "ima":  # a violation has no hash to check
        raise VerificationError("the boot aggregate is a violation or no digest of content")
    expected = boot_aggregate(entries[0].algorithm, pcrs)
    if expected is not None and entries[0].digest != expected:
        raise VerificationError(_other_aggregate(entries[0].digest, pcrs))
    pcr10 = bytes(TEMPLATE_HASH_BYTES)
    for number, entry in enumerate(entries):
        value = entry.template_hash
        if entry.is_violation:
            value = _EXTENDED_FOR_VIOLATION
        elif template_hash(entry) != value:
            raise VerificationError(
                f"entry {number} of the IMA list ({entry.name[:80]!r}) is not what its template "
                "hash says"
            )
        if entry.pcr == 10:
            pcr10 = hashlib.sha1(pcr10 + value, usedforsecurity=False).digest()
    return pcr10


def _other_aggregate(found: bytes, pcrs: Optional[Mapping[int, bytes]]) -> str:
    """What is wrong with a boot aggregate that is not the expected one."""
    if pcrs is None:
        return "the boot aggregate is not zero though there is no TPM"
    if any(found):
        return "the boot aggregate is not that of the TPM's PCRs"
    return (
        "the boot aggregate is zero though there is a TPM: its driver was loaded after IMA had "
        "started; boot a kernel with the driver built in (CONFIG_TCG_CRB=y, CONFIG_TCG_TIS=y), or "
        "keep it from being loaded"
    )


def boot_aggregate(algorithm: str, pcrs: Optional[Mapping[int, bytes]]) -> Optional[bytes]:
    """The boot aggregate that there should be; None where it cannot be told from these PCRs."""
    if pcrs is None:
        return bytes(_DIGEST_BYTES[algorithm])
    if algorithm != "sha256" or any(index not in pcrs for index in range(10)):
        return None  # SHA-1 aggregates cover PCRs of the SHA-1 bank
    return hashlib.sha256(b"".join(pcrs[index] for index in range(10))).digest()


def by_path(entries: Sequence[Measurement]) -> Dict[bytes, List[Measurement]]:
    """Entries about files, by path, in order."""
    found: Dict[bytes, List[Measurement]] = {}
    for entry in entries:
        if entry.is_file:
            found.setdefault(entry.name, []).append(entry)
    return found
