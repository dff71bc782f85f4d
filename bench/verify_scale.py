"""How long do sealing and verification of a large build take, and how much memory?

    python bench/verify_scale.py [--actions 1000 10000] [--materials 1000] [--keep DIR]

Makes records through the real encoders in a temporary directory, then, each in a process of its
own: seals them, verifies the bundle, opens it and makes one inclusion proof. Memory is the peak
resident size of that process, `openSeconds` what the proof does not count. What takes more than
its limit is named on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent / "pants-plugins"),
    str(Path(__file__).resolve().parent.parent / "tests" / "unit"),
]

import core_factory as factory
import harness
from rootseal import digest, keys, leaf_table, prove, seal, verify, verify_proof
from rootseal.bundle import BundleReader
from rootseal.leaf_table import Domain, Leaf
from rootseal.manifest import read_manifest
from rootseal.policy import Policy

LIMIT_ACTIONS, LIMIT_MATERIALS = 10_000, 1_000
LIMITS = {  # up to so many actions: seconds, bytes
    1_000: {"seal": (60.0, 1 << 30), "verify": (10.0, 300_000_000), "proof": (0.1, 300_000_000)},
    10_000: {"seal": (60.0, 1 << 30), "verify": (60.0, 500 << 20), "proof": (0.1, 500 << 20)},
}


def limits(actions: int) -> Mapping[str, Tuple[float, int]]:
    """Of a build of so many actions; of the largest for more."""
    return LIMITS[min((most for most in LIMITS if actions <= most), default=max(LIMITS))]


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


def make_build(directory: Path, actions: int, materials: int) -> None:
    """Records, keys and the manifest, as a build leaves them."""
    keys.create_key_files(directory / "capture", "ed25519")
    keys.create_key_files(directory / "sign", "ed25519")
    capture = keys.load_private_key(directory / "capture")
    (directory / "records").mkdir()
    names = list(make_records(directory / "records", capture, actions, materials))
    document = factory.manifest([])
    document["actions"] = [
        {**factory.manifest_action(b"", index + 1), "record": name}
        for index, name in enumerate(names)
    ]
    document["targets"] = [
        {"address": f"//app{n}:app", "actions": names[n::20], "artifacts": []} for n in range(20)
    ]
    (directory / "manifest.json").write_text(json.dumps(document))


def measure_seal(directory: Path) -> Dict[str, float]:
    started = _now()
    seal.seal(
        read_manifest(json.loads((directory / "manifest.json").read_text())),
        records=seal.RecordDirectory(directory / "records"),
        trusted=[keys.load_public_key(directory / "capture.pub")],
        signer=keys.load_private_key(directory / "sign"),
        out=directory / "bundle",
        targets_dir=directory / "targets",
    )
    return _result(started)


def measure_verify(directory: Path) -> Dict[str, float]:
    trusted = [keys.load_public_key(directory / "sign.pub")]
    started = _now()
    with BundleReader(directory / "bundle") as bundle:
        verify.verify_bundle(
            bundle, trusted=trusted, capture_keys=None, artifacts=[], policy=Policy()
        )
    return _result(started)


def measure_proof(directory: Path) -> Dict[str, float]:
    trusted = [keys.load_public_key(directory / "sign.pub")]
    opened = _now()
    with BundleReader(directory / "bundle") as bundle:
        root = verify.verify_root(bundle.root_envelope, trusted=trusted, capture_keys=None)
        key = bundle.entry(bundle.record_count // 2).action_key
        started = _now()
        open_seconds = started[0] - opened[0]
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
    return {**result, "openSeconds": round(open_seconds, 4), "proofBytes": len(data)}


def _now() -> Tuple[float, float]:
    """Time on the wall, and of this process on processors."""
    return time.perf_counter(), time.process_time()


def _result(started: Tuple[float, float]) -> Dict[str, float]:
    wall, processor = (now - then for now, then in zip(_now(), started))
    return {
        "seconds": round(wall, 4),
        "processorSeconds": round(processor, 4),
        "peakBytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Of this program alone: ru_maxrss counts the parent's memory from before the exec too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


MEASURES = {"seal": measure_seal, "verify": measure_verify, "proof": measure_proof}


def exceeded(actions: int, result: Mapping[str, Mapping[str, float]]) -> List[str]:
    """What took more than its limit."""
    return [
        f"{what}: {result[what]['seconds']} s, {int(result[what]['peakBytes']) >> 20} MiB; "
        f"at most {seconds} s, {size >> 20} MiB"
        for what, (seconds, size) in limits(actions).items()
        if result[what]["seconds"] > seconds or result[what]["peakBytes"] > size
    ]


def save(result: Mapping[str, Any], measured: Mapping[str, Mapping[str, float]]) -> None:
    """Keep it as the other benchmarks are kept; the ratios are to sealing."""
    rows = {
        what: {
            **dict.fromkeys(("medianSeconds", "minSeconds", "maxSeconds"), found["seconds"]),
            "ratio": found["seconds"] / measured["seal"]["seconds"],
        }
        for what, found in measured.items()
    }
    most = limits(result["actions"])
    facts = {
        f"peak memory to {what}, MiB (at most {most[what][1] >> 20})": int(found["peakBytes"]) >> 20
        for what, found in measured.items()
    }
    harness.save(
        f"verify_scale_{result['actions']}",
        f"A bundle of {result['actions']} actions with {result['materials']} materials each",
        rows,
        facts={**facts, "bytes of the bundle": result["bundleBytes"]},
        goals=[harness.Goal(what, most[what][0], "s") for what in rows],
    )


def measure_build(actions: int, materials: int, keep: Optional[Path]) -> None:
    """One build of so many actions: make it, measure each of `MEASURES`."""
    result: Dict[str, object] = {
        "actions": actions,
        "materials": materials,
        "native": leaf_table.uses_native(),
    }
    measured: Dict[str, Dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        name = str(keep or temporary)
        if not Path(name, "manifest.json").exists():
            Path(name).mkdir(exist_ok=True)
            make_build(Path(name), actions, materials)
        for what in MEASURES:
            command = [sys.executable, __file__, "--measure", what, "--directory", name]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured[what] = json.loads(out)
        result["bundleBytes"] = os.stat(Path(name) / "bundle").st_size
    print(json.dumps({**result, **measured}, indent=2))
    save(result, measured)
    if actions > LIMIT_ACTIONS or materials > LIMIT_MATERIALS:
        return
    for text in exceeded(actions, measured):
        print(f"verify_scale: exceeded: {text}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actions", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--materials", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="a directory for the records, to use them again")
    parser.add_argument("--measure", choices=tuple(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.directory)))
        return 0
    for actions in arguments.actions:
        measure_build(actions, arguments.materials, arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
