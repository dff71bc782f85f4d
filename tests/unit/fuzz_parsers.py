"""Fuzz every parser that reads what others wrote: any bytes give a value, or its one error.

    python tests/unit/fuzz_parsers.py [SECONDS [PARSER...]]

hypothesis changes genuine samples (and makes bytes of its own); what comes out must be refused in
the parser's own way, never by a crash. Prints how many inputs each parser was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple, Type

import core_factory as factory
import test_daemon_announce
import test_ptrace_stream
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rootseal import (
    canonical,
    cli_verify,
    envelope,
    ima,
    keys,
    leaf_table,
    manifest,
    opens_table,
    policy,
    record_check,
    verify,
    verify_proof,
    wire,
)
from rootseal.capture import network_log, trace_payload
from rootseal.daemon_announce import decide, read_announcement
from rootseal.daemon_check import MadeRecords, answer_check
from rootseal.errors import (
    BackendUnavailable,
    CaptureError,
    ConfigError,
    EncodingError,
    Error,
    VerificationError,
)
from rootseal.leaf_table import Domain
from rootseal.policy import Policy
from rootseal.record import encode_record, parse_record
from rootseal.verify import verify_bundle, verify_root
from rootseal.wire import Tag

SIGNER, CAPTURE = keys.generate("ed25519"), keys.generate("ed25519")
RECORD = factory.signed_record(CAPTURE)
ROUND = 200  # inputs between two looks at the clock


@dataclasses.dataclass(frozen=True)
class Parser:
    """One parser: a genuine input, what reads it, and how it may refuse."""

    sample: bytes
    read: Callable[[bytes], object]
    refuses: Tuple[Type[Error], ...] = (EncodingError, VerificationError)


def bundle_sample() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        factory.seal_to(Path(place) / "b", capture=CAPTURE, signer=SIGNER)
        return (Path(place) / "b").read_bytes()


def root_sample() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        factory.seal_to(Path(place) / "b", capture=CAPTURE, signer=SIGNER)
        with cli_verify.open_bundle(str(Path(place) / "b")) as bundle:
            return envelope.parse(bundle.root_envelope).payload


def read_bundle(data: bytes) -> object:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(data)
        file.flush()
        with cli_verify.open_bundle(file.name) as bundle:
            trusted = [SIGNER.public_key]
            return verify_bundle(
                bundle, trusted=trusted, capture_keys=None, artifacts=(), policy=Policy()
            )


def read_record(data: bytes) -> object:
    key = factory.description().action_key
    trusted = (CAPTURE.public_key,)
    return record_check.verify_record(data, action_key=key, envelope_sha256=None, trusted=trusted)


def read_frames(data: bytes) -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[: 1 << 16])
        theirs.shutdown(socket.SHUT_WR)
        try:
            while True:
                wire.read_frame(ours, payload_bytes_max=1 << 16)
        except EOFError:
            return None


def read_signed_record(payload: bytes) -> object:
    """What a trusted capture key signed is read as strictly as the rest."""
    made = encode_record(envelope.sign(payload, CAPTURE), parse_record(RECORD).tables)
    return read_record(made)


def read_signed_root(payload: bytes) -> object:
    trusted = [SIGNER.public_key]
    found = verify_root(envelope.sign(payload, SIGNER), trusted=trusted, capture_keys=None)
    return verify.check_targets(found)


def announcement_sample() -> bytes:
    return wire.encode(test_daemon_announce.frame())[wire.HEADER_BYTES :]


def read_announced(data: bytes) -> object:
    """Whatever a client says of an action is read and decided by a daemon that may be root."""
    announced = read_announcement(wire.decode_payload(wire.FrameType.ANNOUNCE, data))
    return decide(announced, test_daemon_announce.HERE)


def check_sample() -> bytes:
    outputs = [{"path": "out/a.o", "sha256": "0" * 64, "size": 6}]
    action = {
        "cmd": ["cc"],
        "environ": {"PATH": "0" * 64},
        "templates": {"A": "{root}/a"},
        "anyValue": ["B"],
        "workingDirectory": ".",
        "outputFiles": ["out/a.o"],
        "outputDirectories": [],
    }
    trusted = [CAPTURE.public_key.pem]
    request = {"action": action, "outputs": outputs, "exitCode": 0, "trustedCaptureKeys": trusted}
    return canonical.encode(request)


def read_check(data: bytes) -> object:
    key = factory.description().action_key
    tlvs = ((Tag.ACTION_KEY, key), (Tag.JSON, data), (Tag.RECORD, RECORD))
    frame = wire.Frame(wire.FrameType.CHECK, tlvs)
    return answer_check(frame, SIGNER.public_key, MadeRecords(SIGNER.public_key.keyid))


def read_text(data: bytes) -> object:
    return policy.parse_policy(data.decode("utf-8", "replace"), where="it")


def read_network(data: bytes) -> object:
    trace_payload.dns_question(data, stream=bool(data[:1]))
    return trace_payload.tls_server_name(data), network_log.socket_address(data)


def parsers() -> Dict[str, Parser]:
    """Every parser by name."""
    observed = factory.observation()
    frame = wire.Frame(wire.FrameType.STATUS)
    ima_list = Path(__file__).parents[1] / "data" / "ima-6.12.bin"
    opens = opens_table.encode([range(2)])
    materials = observed.materials.raw
    toml = b'required_posture = "held"\nallowed_hosts = ["10.0.0.0/8"]\n'
    config = (ConfigError,)
    signed = envelope.sign(b'{"_type":"x"}', SIGNER)
    good = canonical.encode(factory.manifest([RECORD]))

    def read_opens(data: bytes) -> object:
        return opens_table.verify(data, process_count=1, material_count=2)

    def read_proof(data: bytes) -> object:
        trusted = [SIGNER.public_key]
        return verify_proof.verify_proof(data, trusted=trusted, capture_keys=None, policy=Policy())

    return {
        "bundle": Parser(bundle_sample(), read_bundle, (VerificationError, ConfigError)),
        "record": Parser(RECORD, read_record),
        "signed record": Parser(
            envelope.parse(parse_record(RECORD).envelope).payload, read_signed_record
        ),
        "signed root": Parser(root_sample(), read_signed_root),
        "announcement": Parser(
            announcement_sample(),
            read_announced,
            (EncodingError, ConfigError, BackendUnavailable),
        ),
        "check request": Parser(check_sample(), read_check, (EncodingError, ConfigError)),
        "envelope": Parser(signed, envelope.parse),
        "leaf table": Parser(materials, lambda data: leaf_table.verify(data, Domain.MATERIAL)),
        "stored table": Parser(leaf_table.compress(materials), leaf_table.decompress),
        "opens table": Parser(opens, read_opens),
        "JSON": Parser(good, lambda data: canonical.parse(data, bytes_max=1 << 20)),
        "manifest": Parser(good, manifest.parse_manifest, (ConfigError, EncodingError)),
        "proof": Parser(b'{"kind":"action"}', read_proof, (VerificationError, ConfigError)),
        "frames": Parser(wire.encode(frame) * 2, read_frames),
        "ptrace stream": Parser(
            test_ptrace_stream.GOOD, test_ptrace_stream.observe, (CaptureError,)
        ),
        "IMA list": Parser(ima_list.read_bytes()[:4096], ima.parse_binary, (Error,)),
        "network": Parser(b"\x16\x03\x01" + bytes(60), read_network),
        "policy": Parser(toml, read_text, config),
        "public key": Parser(
            SIGNER.public_key.pem.encode(), lambda d: keys.parse_public_key(d, where="it"), config
        ),
    }


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("set", "insert", "delete", "repeat", "cut")),
        st.integers(0, 1 << 20),
        st.integers(0, 64),
        st.binary(max_size=16),
    ),
    max_size=6,
)


def changed(sample: bytes, changes: List[Tuple[str, int, int, bytes]]) -> bytes:
    """A sample with bytes overwritten, inserted, deleted, doubled, or its end cut off."""
    data = bytearray(sample)
    for what, position, length, new in changes:
        at = position % (len(data) + 1)
        if what == "set":
            data[at : at + len(new)] = new
        elif what == "insert":
            data[at:at] = new
        elif what == "delete":
            del data[at : at + length]
        elif what == "repeat":
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def fuzz(name: str, parser: Parser, seconds: float) -> int:
    """Give a parser inputs for so long; how many there were. A crash ends it with the input."""
    given_count, end, number = 0, time.monotonic() + seconds, 0

    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(CHANGES.map(lambda c: changed(parser.sample, c)), st.binary(max_size=200)))
    def one(data: bytes) -> None:
        nonlocal given_count
        given_count += 1
        with contextlib.suppress(*parser.refuses):
            parser.read(data)

    if name != "proof":  # the others are genuine, and must be read
        parser.read(parser.sample)
    while number == 0 or time.monotonic() < end:
        number += 1
        seed(number)(one)()
    return given_count


def main(words: List[str]) -> int:
    """Fuzz all parsers, or those that are named, so many seconds in all."""
    seconds, names = float(words[0]) if words else 60.0, words[1:]
    chosen = {name: item for name, item in parsers().items() if not names or name in names}
    for name, parser in chosen.items():
        count = fuzz(name, parser, seconds / len(chosen))
        print(f"fuzz: {name}: {count} inputs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
