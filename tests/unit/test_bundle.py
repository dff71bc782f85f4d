"""Bundles: every flipped byte and every cut is refused; a full disk leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

import core_factory as factory
import pytest
from rootseal import bundle, cli_verify, digest, envelope, keys, leaf_table, prove, verify
from rootseal.errors import ConfigError, EncodingError, Error, ProofError, VerificationError
from rootseal.leaf_table import Domain
from rootseal.policy import Policy
from rootseal.record import parse_record

CAPTURE = keys.generate("ed25519")
SIGNER = keys.generate("ed25519")


def check(path: Path) -> None:
    with cli_verify.open_bundle(str(path)) as opened:
        verify.verify_bundle(
            opened,
            trusted=[SIGNER.public_key],
            capture_keys=None,
            artifacts=[verify.ArtifactDigest("a", digest.sha256_hex(factory.ARTIFACT))],
            policy=Policy(),
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "b"
    records = [factory.signed_record(CAPTURE, 1)]
    factory.seal_to(path, capture=CAPTURE, signer=SIGNER, records=records)
    check(path)
    return path.read_bytes()


def test_every_flipped_byte_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(small)
    refusers = checks_by_byte(path)
    with path.open("r+b", buffering=0) as stream:
        for index, byte in enumerate(small):
            os.pwrite(stream.fileno(), bytes([byte ^ 1 << index % 8]), index)
            with pytest.raises(VerificationError) as caught:
                check(path)
            assert caught.value.check in refusers[index], index
            os.pwrite(stream.fileno(), bytes([byte]), index)
    check(path)


def checks_by_byte(path: Path) -> List[Tuple[str, ...]]:
    """For each byte of a bundle of one record, the checks that may refuse when it changes."""
    form, record_form = ("BUNDLE_FORMAT",), ("RECORD_FORMAT",)
    with bundle.BundleReader(path) as opened:
        entry = opened.entry(0)
        parts = parse_record(opened.read_record(entry))
        regions = [
            (8 + 4, form),
            (len(opened.root_envelope), ("ROOT_ENVELOPE", "ROOT_SIGNATURE")),
            (4, form),
            (len(opened.engine_inputs), ("ENGINE_INPUTS",)),
            (4, form),
            (64, ("TREE",)),  # action key and digest of the envelope
            (16, form),
            (8 + 4, record_form),
            (len(parts.envelope), ("RECORD_ENVELOPE",)),
        ]
    tables = (parts.tables.materials, parts.tables.products, parts.tables.opens)
    for table in tables:
        regions += [(4, record_form), (len(table), ("RECORD_TABLES",))]
    found = [checks for length, checks in regions for _ in range(length)]
    assert len(found) == path.stat().st_size
    return found


@pytest.mark.parametrize("times", [0, 2], ids=["dropped", "doubled"])
def test_a_byte_dropped_or_doubled_anywhere_is_refused(
    small: bytes, tmp_path: Path, times: int
) -> None:
    """All by the first check: every length in the file is fixed by another."""
    path = tmp_path / "b"
    for index in range(0, len(small), 11):
        path.write_bytes(small[:index] + small[index : index + 1] * times + small[index + 1 :])
        with pytest.raises(VerificationError) as caught:
            check(path)
        assert caught.value.check == "BUNDLE_FORMAT", index


def test_every_shorter_bundle_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(small)
    for length in reversed(range(len(small))):
        os.truncate(path, length)
        with pytest.raises(VerificationError, match=r"check 1 \(bundle-format\)"):
            check(path)


def test_a_file_that_becomes_shorter_while_open_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(small)
    with bundle.BundleReader(path) as reader:
        os.truncate(path, len(small) - 1)
        with pytest.raises(EncodingError, match="became shorter"):
            reader.read_record(reader.entry(0))


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        bundle.BundleReader(tmp_path / "fifo")


def test_lengths_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A header that claims 4 GiB costs nothing."""
    (tmp_path / "b").write_bytes(b"RSBN\x01\x00\x00\x00" + b"\xff" * 4 + bytes(100))
    with pytest.raises(EncodingError, match="at most"):
        bundle.BundleReader(tmp_path / "b")


def test_an_index_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    head = b"RSBN\x01\x00\x00\x00" + bytes(8)
    (tmp_path / "b").write_bytes(head + (bundle.RECORD_COUNT_MAX).to_bytes(4, "big"))
    with pytest.raises(EncodingError, match="cut short"):
        bundle.BundleReader(tmp_path / "b")
    (tmp_path / "b").write_bytes(head + (bundle.RECORD_COUNT_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(EncodingError, match="records; at most"):
        bundle.BundleReader(tmp_path / "b")


def test_a_full_disk_leaves_nothing_and_keeps_the_older_file(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a child makes write(2) fail as a full disk does."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "import core_factory as factory\n"
        "from rootseal import keys\n"
        "from rootseal.errors import Error\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "key = keys.generate('ed25519')\n"
        "try:\n"
        "    factory.seal_to(Path(sys.argv[1]), capture=key, signer=key)\n"
        "except Error as error:\n"
        "    print(error)\n"
        "    sys.exit(7)\n"
    )
    out = tmp_path / "out" / "build.rootseal"
    out.parent.mkdir()
    out.write_bytes(b"older")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"cannot write {out}: File too large\n"
    assert [item.name for item in out.parent.iterdir()] == ["build.rootseal"]
    assert out.read_bytes() == b"older"


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    index = [bundle.NewRecord(bytes(32), bytes(32), 3)]
    with pytest.raises(EncodingError, match="changed"):
        bundle.write_bundle(
            tmp_path / "b", root_envelope=b"", engine_inputs=b"", index=index, records=[b"four"]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Error, match="cannot write"):
        factory.seal_to(tmp_path / "file" / "b", capture=CAPTURE, signer=SIGNER)


def test_reader_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    """The records are sparse: 1 TiB of them could not be read into memory."""
    count, length = 2048, 512 * 1024 * 1024
    head = b"RSBN\x01\x00\x00\x00" + bytes(8) + count.to_bytes(4, "big")
    offset = len(head) + 80 * count
    entries = [
        number.to_bytes(32, "big")
        + bytes(32)
        + (offset + number * length).to_bytes(8, "big")
        + length.to_bytes(8, "big")
        for number in range(count)
    ]
    path = tmp_path / "b"
    path.write_bytes(head + b"".join(entries))
    try:
        os.truncate(path, offset + count * length)
    except OSError:
        pytest.skip("this filesystem has no sparse files of 1 TiB")
    with bundle.BundleReader(path) as reader:
        assert reader.record_count == count
        assert len(list(reader.leaf_hashes())) == count


def test_a_node_is_no_leaf(tmp_path: Path) -> None:
    """Second preimage: an index that holds the two halves of a node has another root."""
    factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER)
    with bundle.BundleReader(tmp_path / "b") as reader:
        hashes = list(reader.leaf_hashes())
        root = verify.read_root_unverified(reader.root_envelope).predicate.tree_root
    forged = bundle.action_leaf_hash(hashes[0], hashes[1])
    assert prove.merkle.root_of_hashes([forged, hashes[2]]) != root


@pytest.mark.parametrize("signed_size", [3, 2])
def test_a_bundle_with_a_node_as_its_leaf_is_refused(tmp_path: Path, signed_size: int) -> None:
    """Its first entry holds the two halves of a node, and the size may even be signed so."""
    path = tmp_path / "b"
    factory.forged_bundle(
        path,
        capture=CAPTURE,
        signer=SIGNER,
        change=lambda root: root["tree"].update(size=signed_size),
    )
    with bundle.BundleReader(path) as reader:
        hashes, last = list(reader.leaf_hashes()), reader.entry(2)
        root, inputs, data = reader.root_envelope, reader.engine_inputs, reader.read_record(last)
    node = bundle.NewRecord(hashes[0], hashes[1], len(data))
    entries = sorted([node, bundle.NewRecord(last.action_key, last.envelope_sha256, len(data))])
    records = [data, data]
    bundle.write_bundle(
        path, root_envelope=root, engine_inputs=inputs, index=entries, records=records
    )
    with pytest.raises(ProofError) as caught:
        check(path)
    assert caught.value.check == "TREE"
    assert ("the tree has root" in str(caught.value)) == (signed_size == 2)


def test_paths_of_every_kind_go_through_a_bundle(tmp_path: Path) -> None:
    paths = [b"new\nline", b"\xff\xfe not utf-8", b"x" * 4095, b"/abs/%41", "ü/→".encode()]
    observed = factory.observation(materials=[factory.leaf(path) for path in paths])
    records = [factory.signed_record(CAPTURE, 1, observed=observed)]
    factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=records)
    check(tmp_path / "b")
    with bundle.BundleReader(tmp_path / "b") as reader:
        root = verify.read_root_unverified(reader.root_envelope)
        for path in paths:
            proof = prove.prove_leaf(reader, root, Domain.MATERIAL, path, action_key=None)
            assert proof["kind"] == "material"
        parts = prove.record.parse_record(reader.read_record(reader.entry(0)))
    raw = leaf_table.decompress(parts.tables.materials)
    found = [leaf.path for leaf in leaf_table.iter_leaves(raw, Domain.MATERIAL)]
    assert found == sorted(paths)
    assert envelope.parse(parts.envelope).keyid == CAPTURE.public_key.keyid
