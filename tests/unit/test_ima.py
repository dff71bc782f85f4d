"""The IMA measurement list: real entries of a Debian 6.12 kernel, every form, and bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import struct
from pathlib import Path
from typing import Sequence

import core_factory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rootseal import diagnostics, digest, ima, leaf_table
from rootseal.capture import ima as backend
from rootseal.capture.scope import CaptureLimits
from rootseal.errors import BackendUnavailable, CaptureError, EncodingError, VerificationError
from rootseal.ima import Measurement
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource, LeafKind, Observation, Posture

DATA = Path(__file__).resolve().parent.parent / "data"
BINARY = (DATA / "ima-6.12.bin").read_bytes()
ASCII = (DATA / "ima-6.12.txt").read_bytes()


def encode(entry: Measurement, order: str = "<") -> bytes:
    """An entry as the kernel writes it, by the field rules of IMA-templates.rst."""
    prefix = f"{entry.kind}:" if entry.template.endswith("v2") else ""
    fields = [f"{prefix}{entry.algorithm}:\0".encode() + entry.digest, entry.name + b"\0"]
    if entry.template in ("ima-sig", "ima-buf", "ima-sigv2"):
        fields.append(entry.extra)
    number = struct.Struct(f"{order}I")
    body = b"".join(number.pack(len(field)) + field for field in fields)
    name = entry.template.encode()
    head = number.pack(entry.pcr) + entry.template_hash + number.pack(len(name)) + name
    return head + number.pack(len(body)) + body


def made(**changes: object) -> Measurement:
    """An entry with the right template hash, unless that is among the changes."""
    base = Measurement(10, bytes(20), "ima-ng", "ima", "sha256", digest.sha256(b"x"), b"/usr/bin/x")
    entry = dataclasses.replace(base, **changes)  # type: ignore[arg-type]
    if "template_hash" in changes:
        return entry
    return dataclasses.replace(entry, template_hash=ima.template_hash(entry))


FORMS = [
    made(),
    made(template="ima-sig", extra=b"\x03\x02signature"),
    made(template="ima-sig"),
    made(template="ima-buf", name=b"kexec-cmdline", extra=b"root=/dev/sda quiet"),
    made(template="ima-ngv2", kind="verity"),
    made(template="ima-sigv2", extra=b"s"),
    made(algorithm="sha512", digest=bytes(64)),
    made(algorithm="sha1", digest=bytes(20), name=b"/odd/\xff"),
    made(algorithm="sm3", digest=bytes(32)),
]


def test_both_forms_of_a_real_list_say_the_same() -> None:
    entries = ima.parse_binary(BINARY, byte_order="little")
    assert entries == ima.parse_ascii(ASCII)
    assert len(entries) == 24
    assert entries[0].name == ima.BOOT_AGGREGATE
    assert {entry.template for entry in entries} == {"ima-sig"}
    assert any(entry.name.startswith(b"/usr/lib/") for entry in entries)


def test_template_hashes_of_a_real_list_are_right() -> None:
    entries = ima.parse_binary(BINARY, byte_order="little")
    pcr10 = bytes(20)
    for entry in entries:
        assert ima.template_hash(entry) == entry.template_hash
        pcr10 = hashlib.sha1(pcr10 + entry.template_hash).digest()
    assert ima.check_list(entries, pcrs=None) == pcr10


@pytest.mark.parametrize("entry", FORMS, ids=lambda e: f"{e.template}-{e.algorithm}")
@pytest.mark.parametrize(("order", "name"), [("<", "little"), (">", "big")])
def test_every_template_is_read(entry: Measurement, order: str, name: str) -> None:
    assert ima.parse_binary(encode(entry, order) * 2, byte_order=name) == (entry, entry)


@pytest.mark.parametrize("entry", FORMS, ids=lambda e: f"{e.template}-{e.algorithm}")
def test_every_template_is_read_as_text(entry: Measurement) -> None:
    prefix = f"{entry.kind}:" if entry.template.endswith("v2") else ""
    words = [str(entry.pcr), entry.template_hash.hex(), entry.template]
    words.append(f"{prefix}{entry.algorithm}:{entry.digest.hex()}")
    line = " ".join(words).encode() + b" " + entry.name
    if entry.template in ("ima-sig", "ima-buf", "ima-sigv2"):
        line += b" " + entry.extra.hex().encode()
    assert ima.parse_ascii(line + b"\n") == (entry,)


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_list_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(EncodingError):
        ima.parse_binary(BINARY[:-cut], byte_order="little")


def fields(*parts: bytes, template: bytes = b"ima-ng", pcr: int = 10) -> bytes:
    """An entry with these fields, whatever they are."""
    body = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    head = struct.pack("<I", pcr) + bytes(20) + struct.pack("<I", len(template)) + template
    return head + struct.pack("<I", len(body)) + body


D_NG = b"sha256:\0" + bytes(32)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (fields(D_NG, b"/x\0", template=b"ima"), "template 'ima'"),
        (fields(D_NG, b"/x\0", template=b"evm-sig"), "template 'evm-sig'"),
        (fields(D_NG, b"/x\0", b"surplus"), "more fields than ima-ng"),
        (fields(D_NG), "cut short"),
        (fields(D_NG, b"/x"), "not one C string"),
        (fields(D_NG, b"/x\0/y\0"), "not one C string"),
        (fields(D_NG, b""), "not one C string"),
        (fields(D_NG, b"/x\0", pcr=24), "for PCR 24"),
        (fields(D_NG[:-1], b"/x\0"), "31 bytes as its sha256 digest"),
        (fields(b"sha256:", b"/x\0"), "malformed digest"),
        (fields(b"sha256\0" + bytes(32), b"/x\0"), "malformed digest"),
        (fields(b"ima:sha256:\0" + bytes(32), b"/x\0"), "malformed digest"),
        (fields(b"no:sha256:\0" + bytes(32), b"/x\0", template=b"ima-ngv2"), "digest kind 'no'"),
        (fields(b"new:\0" + bytes(32), b"/x\0"), "32 bytes as its new digest"),
        (fields(D_NG, b"/x\0")[:24] + struct.pack("<I", 2**32 - 1), "length 4294967295"),
        (fields(D_NG, b"/x\0")[:24] + struct.pack("<I", 256) + bytes(256), "length 256"),
        (fields(D_NG, b"/x\0")[:34] + struct.pack("<I", 2**31), "length 2147483648"),
        (fields(D_NG, b"/x\0")[:34] + struct.pack("<II", 4, 2**20 + 1), "length 1048577"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_entry_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(EncodingError, match=words):
        ima.parse_binary(BINARY + data, byte_order="little")


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(BINARY)), st.integers(0, 40))
def test_any_bytes_give_entries_or_the_one_error(junk: bytes, at: int, drop: int) -> None:
    for data in (junk, BINARY[:at] + junk + BINARY[at + drop :]):
        with contextlib.suppress(EncodingError):
            ima.parse_binary(data, byte_order="little")
        with contextlib.suppress(EncodingError):
            ima.parse_ascii(data)


@pytest.mark.parametrize(
    "line",
    [
        b"10 00 ima-ng sha256:00 /x",
        b"10 " + b"0" * 40 + b" ima-ng sha256:" + b"0" * 64,
        b"99 " + b"0" * 40 + b" ima-ng sha256:" + b"0" * 64 + b" /x",
        b"10 " + b"0" * 40 + b" ima-ng sha256:" + b"0" * 64 + b" /x surplus",
        b"10 " + b"0" * 40 + b" ima-xx sha256:" + b"0" * 64 + b" /x",
        b"ten " + b"0" * 40 + b" ima-ng sha256:" + b"0" * 64 + b" /x",
        b"10 " + b"0" * 40 + b" ima-ng :sha256:" + b"0" * 64 + b" /x",
        b"10 " + b"0" * 40 + b" ima-ngv2 other:sha256:" + b"0" * 64 + b" /x",
        b"10 " + b"0" * 40 + b" ima-ng sha512:" + b"0" * 64 + b" /x",
        b"second half of a name with a newline in it",
    ],
)
def test_malformed_line_is_named(line: bytes) -> None:
    with pytest.raises(EncodingError, match="line 25 of the IMA list"):
        ima.parse_ascii(ASCII + line + b"\n")


def test_text_without_an_end_is_refused() -> None:
    with pytest.raises(EncodingError, match="cut short"):
        ima.parse_ascii(ASCII[:-1])


# --- checking -------------------------------------------------------------------------------

BOOT = made(name=ima.BOOT_AGGREGATE, digest=bytes(32))


def test_changed_entry_is_refused() -> None:
    changed = dataclasses.replace(made(), digest=digest.sha256(b"y"))
    with pytest.raises(VerificationError, match="is not what its template hash says"):
        ima.check_list([BOOT, changed], pcrs=None)


def test_list_without_its_beginning_is_refused() -> None:
    for entries in ([], [made()]):
        with pytest.raises(VerificationError, match="does not begin"):
            ima.check_list(entries, pcrs=None)


def test_boot_aggregate_that_no_hash_vouches_for_is_refused() -> None:
    """A violation has no template hash: anybody could have written its fields."""
    violation = dataclasses.replace(BOOT, template_hash=bytes(20))
    verity = made(name=ima.BOOT_AGGREGATE, digest=bytes(32), template="ima-ngv2", kind="verity")
    for entry in (violation, verity):
        with pytest.raises(VerificationError, match="is a violation or no digest"):
            ima.check_list([entry, made()], pcrs=None)
    buffer = made(name=ima.BOOT_AGGREGATE, digest=bytes(32), template="ima-buf")
    with pytest.raises(VerificationError, match="does not begin"):
        ima.check_list([buffer, made()], pcrs=None)


def test_only_the_first_entry_is_the_boots() -> None:
    """After kexec there is one of each boot; and a file may have that name."""
    again = made(name=ima.BOOT_AGGREGATE, digest=digest.sha256(b"program"))
    ima.check_list([BOOT, again], pcrs=None)
    assert again.is_nameless_file and not again.is_file
    assert not made(template="ima-buf", name=b"kexec-cmdline").is_nameless_file


def test_boot_aggregate_is_that_of_the_tpm_or_zero_without_one() -> None:
    pcrs = {index: digest.sha256(bytes([index])) for index in range(10)}
    aggregate = digest.sha256(b"".join(pcrs[index] for index in range(10)))
    genuine = made(name=ima.BOOT_AGGREGATE, digest=aggregate)
    ima.check_list([genuine], pcrs=pcrs)
    with pytest.raises(VerificationError, match="not that of the TPM"):
        ima.check_list([genuine], pcrs={**pcrs, 9: bytes(32)})
    with pytest.raises(VerificationError, match="no TPM"):
        ima.check_list([genuine], pcrs=None)
    with pytest.raises(
        VerificationError, match=r"is zero though .* CONFIG_TCG_TIS=y.*being loaded"
    ):
        ima.check_list([BOOT], pcrs=pcrs)


def test_an_aggregate_that_the_tpm_cannot_show_is_not_compared() -> None:
    """Of SHA-1, or of a TPM of which not each SHA-256 PCR can be read (docs/ima.md)."""
    nine = {index: bytes(32) for index in range(9)}
    other = made(name=ima.BOOT_AGGREGATE, digest=digest.sha256(b"of another boot"))
    sha1 = made(name=ima.BOOT_AGGREGATE, algorithm="sha1", digest=b"\1" * 20)
    ima.check_list([other], pcrs=nine)
    ima.check_list([sha1], pcrs={**nine, 9: bytes(32)})
    for entry in (other, sha1):
        with pytest.raises(VerificationError, match="no TPM"):
            ima.check_list([entry], pcrs=None)


def test_pcrs_are_read_as_the_kernel_shows_them(tmp_path: Path) -> None:
    tpm = tmp_path / "tpm0"
    assert backend.read_pcrs(tpm) is None
    tpm.mkdir()
    assert backend.read_pcrs(tpm) == {}, "a TPM of SHA-1 alone, or Linux before 5.12"
    (tpm / "pcr-sha256").mkdir()
    for index in range(24):
        (tpm / "pcr-sha256" / str(index)).write_text(f"{index:02X}" * 32 + "\n")
    wanted = {index: bytes([index]) * 32 for index in range(10)}
    assert backend.read_pcrs(tpm) == wanted
    (tpm / "pcr-sha256" / "0").write_text("no number\n")
    (tpm / "pcr-sha256" / "9").unlink()
    assert backend.read_pcrs(tpm) == {index: wanted[index] for index in range(1, 9)}


def test_violation_is_extended_as_ones() -> None:
    violation = made(template_hash=bytes(20))
    assert violation.is_violation
    first = hashlib.sha1(bytes(20) + BOOT.template_hash).digest()
    expected = hashlib.sha1(first + b"\xff" * 20).digest()
    assert ima.check_list([BOOT, violation], pcrs=None) == expected


# --- the backend ----------------------------------------------------------------------------


def merged(
    base: Observation, entries: Sequence[Measurement], root: bytes, violations: int = 0
) -> Observation:
    return backend.merge(base, entries, violations, root=root, limits=CaptureLimits())


def materials_of(found: Observation) -> dict[bytes, set[tuple[bytes, int]]]:
    """Digests and sources by path."""
    leaves: dict[bytes, set[tuple[bytes, int]]] = {}
    for leaf in leaf_table.iter_leaves(found.materials.raw, Domain.MATERIAL):
        leaves.setdefault(leaf.path, set()).add((leaf.digest, leaf.source))
    return leaves


WALKED = core_factory.observation(posture=Posture.WALKED)


def test_measured_files_get_their_source_and_violations_are_losses(tmp_path: Path) -> None:
    outside = tmp_path / "libc.so"
    outside.write_bytes(b"libc")
    outside.chmod(0o755)
    base = core_factory.observation(posture=Posture.WALKED)
    entries = [
        made(name=b"/sandbox/1/src/a.c", digest=digest.sha256(b"int a;")),
        made(name=b"/sandbox/1/out/a.o", digest=digest.sha256(b"another")),
        made(name=bytes(outside), digest=digest.sha256(b"libc")),
        made(name=b"/gone/temporary", digest=digest.sha256(b"gone")),
        made(name=b"/sandbox/1/src/b.c", template_hash=bytes(20)),
    ]
    found = merged(base, entries, b"/sandbox/1")
    materials = {
        leaf.path: leaf for leaf in leaf_table.iter_leaves(found.materials.raw, Domain.MATERIAL)
    }
    assert materials[b"src/a.c"].source == DigestSource.IMA
    assert materials[b"/usr/bin/cc"].source != DigestSource.IMA
    assert materials[bytes(outside)].digest == digest.sha256(b"libc")
    assert materials[bytes(outside)].kind == LeafKind.FILE, "executed or not: it is not told"
    assert b"/gone/temporary" not in materials
    (product,) = leaf_table.iter_leaves(found.products.raw, Domain.PRODUCT)
    assert product.source != DigestSource.IMA, "another content was measured"
    assert found.posture is Posture.WALKED
    assert diagnostics.losses(found.counters) == {"mutatedAfterOpen": 1}


def test_a_file_that_is_no_longer_what_was_measured_is_a_loss(tmp_path: Path) -> None:
    """The leaf would have the digest of one content and the size of another."""
    header = tmp_path / "header.h"
    header.write_bytes(b"after")
    entries = [made(name=bytes(header), digest=digest.sha256(text)) for text in (b"a", b"after")]
    found = merged(WALKED, entries, b"/sandbox/1")
    ima_leaf = (digest.sha256(b"after"), int(DigestSource.IMA))
    assert materials_of(found)[bytes(header)] == {ima_leaf}
    assert diagnostics.losses(found.counters) == {"mutatedAfterOpen": 1}
    (mutation,) = found.mutations.found
    assert (mutation.path, mutation.digest_at_open) == (bytes(header), digest.sha256(b"a"))
    assert mutation.digest_later == digest.sha256(b"after")


def test_an_input_that_changed_after_the_first_snapshot_is_told(tmp_path: Path) -> None:
    """Its path has a leaf by the walk already, of another content."""
    tool = tmp_path / "tool"
    tool.write_bytes(b"changed")
    before = core_factory.leaf(bytes(tool), b"before")
    base = dataclasses.replace(WALKED, materials=leaf_table.encode(Domain.MATERIAL, [before]))
    found = merged(base, [made(name=bytes(tool), digest=digest.sha256(b"changed"))], b"/sandbox/1")
    digests = {item for item, _ in materials_of(found)[bytes(tool)]}
    assert digests == {digest.sha256(b"before"), digest.sha256(b"changed")}
    found = merged(base, [made(name=bytes(tool), digest=digest.sha256(b"gone"))], b"/sandbox/1")
    assert diagnostics.losses(found.counters) == {"mutatedAfterOpen": 1}


def test_spaces_are_found_again_by_content(tmp_path: Path) -> None:
    """The kernel writes `_` for a space: in a file's name, its directory's and the root's."""
    folder = tmp_path / "two  words_and one"
    folder.mkdir()
    (folder / "a b_c").write_bytes(b"spaces")
    (folder / "a_b_c").write_bytes(b"underscores")
    listed = bytes(folder / "a_b_c").replace(b" ", b"_")
    entries = [made(name=listed, digest=digest.sha256(b"spaces"))]
    found = materials_of(merged(WALKED, entries, b"/sandbox/1"))
    assert bytes(folder / "a b_c") in found
    assert bytes(folder / "a_b_c") not in found, "that file was never measured"
    source = core_factory.leaf(b"src/a b.c", b"int a;")
    base = dataclasses.replace(WALKED, materials=leaf_table.encode(Domain.MATERIAL, [source]))
    inside = made(name=b"/my_sandbox/1/src/a_b.c", digest=digest.sha256(b"int a;"))
    found = materials_of(merged(base, [inside], b"/my sandbox/1"))
    assert found == {b"src/a b.c": {(digest.sha256(b"int a;"), int(DigestSource.IMA))}}


def test_names_that_are_odd_are_paths_all_the_same(tmp_path: Path) -> None:
    names = [b"line\nbreak", b"old (deleted)", b"\xff\\040", b"%s", b"boot_aggregate"]
    paths = [bytes(tmp_path) + b"/" + name for name in names]
    for path in paths:
        Path(os.fsdecode(path)).write_bytes(path)
    listed = b"".join(
        encode(made(name=path.replace(b" ", b"_"), digest=digest.sha256(path))) for path in paths
    )
    found = merged(WALKED, ima.parse_binary(listed, byte_order="little"), b"/sandbox/1")
    assert set(paths) <= materials_of(found).keys()


def test_links_directories_and_fifos_are_no_measured_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    names = ("link", "fifo", "", "gone", "link/below")
    entries = [made(name=bytes(tmp_path) + b"/" + name.encode()) for name in names]
    found = merged(WALKED, entries, b"/sandbox/1")
    assert materials_of(found).keys() == materials_of(WALKED).keys()
    assert diagnostics.losses(found.counters) == {}


def test_what_the_list_cannot_name_by_path_and_sha256_is_a_loss(tmp_path: Path) -> None:
    """Of these the record has no leaf; what the walk has a leaf of is only not confirmed."""
    sha512 = {"algorithm": "sha512", "digest": hashlib.sha512(b"tool").digest()}
    (tmp_path / "tool").write_bytes(b"tool")
    entries = [
        made(name=b"memfd:code"),
        made(name=ima.BOOT_AGGREGATE),
        made(name=bytes(tmp_path / "tool"), **sha512),
        made(name=bytes(tmp_path / "verity"), template="ima-ngv2", kind="verity"),
    ]
    found = merged(WALKED, entries, b"/sandbox/1")
    assert diagnostics.losses(found.counters) == {"unhashedOpensTotal": 4}
    others = [
        made(name=b"/sandbox/1/src/a.c", **sha512),
        made(name=b"/usr/bin/cc", **sha512),
        made(name=b"kexec-cmdline", template="ima-buf"),
    ]
    found = merged(WALKED, others, b"/sandbox/1")
    assert diagnostics.losses(found.counters) == {}
    assert found.materials == WALKED.materials


def test_violations_without_an_entry_count(tmp_path: Path) -> None:
    """The kernel counts one before it finds the memory for its entry."""
    entries = [made(name=b"/x", template_hash=bytes(20))]
    for counted, total in ((0, 1), (1, 1), (3, 3)):
        found = merged(WALKED, entries, b"/sandbox/1", counted)
        assert found.counters["mutatedAfterOpen"] == found.mutations.left_out == total


def test_caps_of_the_action_hold_for_what_is_outside(tmp_path: Path) -> None:
    entries = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345")
        entries.append(made(name=bytes(tmp_path / name), digest=digest.sha256(b"12345")))
    limits = CaptureLimits(max_hashed_bytes=6)
    found = backend.merge(WALKED, entries, root=b"/sandbox/1", limits=limits)
    assert diagnostics.losses(found.counters) == {"hashedBytesCapHit": 1}


def write_list(path: Path, *entries: Measurement, violations: int = 0) -> Path:
    """A list, and what the kernel counts beside it."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(map(encode, entries)))
    path.with_name(backend.COUNT).write_text(f"{len(entries):10}\n")
    path.with_name(backend.VIOLATIONS).write_text(f"{violations:10}\n")
    return path


def append(path: Path, entry: Measurement) -> None:
    with path.open("ab") as file:
        file.write(encode(entry))
    count = path.with_name(backend.COUNT)
    count.write_text(f"{int(count.read_text()) + 1:10}\n")


def test_window_begins_at_the_end_of_the_list(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list", BOOT, made(), violations=2)
    window = backend.ImaWindow(path)
    assert (window.entries(), window.violations()) == ((), 0)
    append(path, made(name=b"/new"))
    path.with_name(backend.VIOLATIONS).write_text("3\n")
    assert [entry.name for entry in window.entries()] == [b"/new"]
    assert window.violations() == 1
    append(path, dataclasses.replace(made(), name=b"/forged"))
    with pytest.raises(CaptureError, match="/forged"):
        window.entries()
    window.close()


def test_a_list_that_was_cut_is_refused(tmp_path: Path) -> None:
    """What is missing could be the violation."""
    path = write_list(tmp_path / "list", BOOT, made())
    window = backend.ImaWindow(path)
    append(path, made(name=b"/new"))
    os.truncate(path, len(encode(BOOT)))
    with pytest.raises(CaptureError, match="was cut: it gave 2 entries, the kernel counts 3"):
        window.entries()
    window.close()
    with pytest.raises(CaptureError, match="was cut: it gave 1 entries, the kernel counts 3"):
        backend.ImaWindow(path)
    path.with_name(backend.COUNT).write_text("many\n")
    with pytest.raises(CaptureError, match="no number"):
        backend.ImaWindow(path)
    path.with_name(backend.COUNT).unlink()
    with pytest.raises(BackendUnavailable, match=backend.COUNT):
        backend.ImaWindow(path)


def test_a_violation_or_another_hash_at_the_end_does_not_refuse_the_kernel(tmp_path: Path) -> None:
    """Before 5.19 a violation is an entry of SHA-1; one appraised file may have another hash."""
    sha1 = {"algorithm": "sha1", "digest": bytes(20)}
    last = (
        made(**sha1, template_hash=bytes(20)),
        made(**sha1),
        made(name=b"x", template="ima-buf"),
    )
    for number, entry in enumerate(last):
        path = write_list(tmp_path / str(number) / "list", BOOT, made(), entry)
        backend.ImaWindow(path).close()


def test_kernels_that_measure_nothing_or_otherwise_are_unavailable(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="ima_policy=tcb"):
        backend.ImaWindow(tmp_path / "missing")
    with pytest.raises(BackendUnavailable, match="measures nothing"):
        backend.ImaWindow(write_list(tmp_path / "empty", BOOT))
    with pytest.raises(BackendUnavailable, match="measures nothing"):
        buffer = made(template="ima-buf", name=b"kexec-cmdline")
        backend.ImaWindow(write_list(tmp_path / "buffer", BOOT, buffer))
    with pytest.raises(BackendUnavailable, match="with fs-verity, not SHA-256"):
        verity = made(template="ima-ngv2", kind="verity")
        backend.ImaWindow(write_list(tmp_path / "verity", BOOT, verity))
    sha1 = made(algorithm="sha1", digest=bytes(20))
    with pytest.raises(BackendUnavailable, match="not SHA-256"):
        backend.ImaWindow(write_list(tmp_path / "sha1", BOOT, sha1))
    with pytest.raises(CaptureError, match="not genuine"):
        forged = dataclasses.replace(made(), name=b"/forged")
        backend.ImaWindow(write_list(tmp_path / "forged", BOOT, forged, made()))
