"""How long does verification of a large bundle take, and how much memory?

    python bench/verify_scale.py [--actions 1000] [--materials 1000] [--json]

Makes a bundle through the real encoders in a temporary directory, then, each in a process of its
own: verifies it, and makes and verifies one inclusion proof. Memory is the peak resident size of
the process that verifies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent / "pants-plugins"),
    str(Path(__file__).resolve().parent.parent / "tests" / "unit"),
]

import core_factory as factory
from rootseal import digest, keys, leaf_table, prove, seal, verify, verify_proof
from rootseal.bundle import BundleReader
from rootseal.leaf_table import Domain, Leaf
from rootseal.manifest import read_manifest
from rootseal.policy import Policy


def make_records(
    directory: Path, capture: keys.KeyFileSigner, actions: int, materials: int
) -> Iterator[str]:
    """Write one record per action; half of the materials are shared by all actions."""
    shared = [_leaf(b"/usr/lib/python3.11/part%d/module%d.py", n, 0) for n in range(materials // 2)]
    for number in range(1, actions + 1):
        own = [
            _leaf(b"src/package%d/source%d.c", n, number) for n in range(materials - len(shared))
        ]
        observed = factory.observation(
            materials=shared + own,
            products=[_leaf(b"out/%d/object%d.o", n, number) for n in range(4)],
        )
        data = factory.signed_record(capture, number, observed=observed)
        name = digest.sha256_hex(data)
        place = directory / name[:2] / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
        yield name


def _leaf(pattern: bytes, number: int, salt: int) -> Leaf:
    content = hashlib.sha256(b"%d %d" % (number, salt)).digest()
    return Leaf(pattern % (number % 40, number), content, 1000 + number, 0o644, 0, 0)


def make_bundle(directory: Path, actions: int, materials: int) -> None:
    capture, signer = keys.generate("ed25519"), keys.generate("ed25519")
    records = directory / "records"
    records.mkdir()
    names = list(make_records(records, capture, actions, materials))
    document = factory.manifest([])
    document["actions"] = [
        {**factory.manifest_action(b"", index + 1), "record": name}
        for index, name in enumerate(names)
    ]
    document["targets"] = [
        {"address": f"//app{n}:app", "actions": names[n::20], "artifacts": []} for n in range(20)
    ]
    started = time.perf_counter()
    seal.seal(
        read_manifest(document),
        records=seal.RecordDirectory(records),
        trusted=[capture.public_key],
        signer=signer,
        out=directory / "bundle",
        targets_dir=None,
    )
    print(f"sealed in {time.perf_counter() - started:.2f} s", file=sys.stderr)
    (directory / "sign.pub").write_text(signer.public_key.pem)


def measure_verify(directory: Path) -> Dict[str, float]:
    trusted = [keys.load_public_key(directory / "sign.pub")]
    started = time.perf_counter()
    with BundleReader(directory / "bundle") as bundle:
        verify.verify_bundle(
            bundle, trusted=trusted, capture_keys=None, artifacts=[], policy=Policy()
        )
    return _result(started)


def measure_proof(directory: Path) -> Dict[str, float]:
    trusted = [keys.load_public_key(directory / "sign.pub")]
    with BundleReader(directory / "bundle") as bundle:
        root = verify.verify_root(bundle.root_envelope, trusted=trusted, capture_keys=None)
        key = bundle.entry(bundle.record_count // 2).action_key
        started = time.perf_counter()
        proof = prove.prove_leaf(
            bundle,
            root,
            Domain.MATERIAL,
            b"/usr/lib/python3.11/part7/module7.py",
            action_key=key,
        )
        result = _result(started)
    data = prove.encode_proof(proof)
    verify_proof.verify_proof(data, trusted=trusted, capture_keys=None, policy=Policy())
    return {**result, "proofBytes": len(data)}


def _result(started: float) -> Dict[str, float]:
    elapsed = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(elapsed, 4), "peakBytes": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actions", type=int, default=1000)
    parser.add_argument("--materials", type=int, default=1000)
    parser.add_argument("--measure", choices=("verify", "proof"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure = measure_verify if arguments.measure == "verify" else measure_proof
        print(json.dumps(measure(arguments.directory)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_bundle(directory, arguments.actions, arguments.materials)
        result: Dict[str, object] = {
            "actions": arguments.actions,
            "materials": arguments.materials,
            "bundleBytes": os.stat(directory / "bundle").st_size,
            "native": leaf_table.uses_native(),
        }
        for what in ("verify", "proof"):
            command = [sys.executable, __file__, "--measure", what, "--directory", name]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result[what] = json.loads(out)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
