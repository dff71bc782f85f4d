"""`rootseal verify` and `rootseal verify-proof`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from rootseal import digest, envelope, files, fsverity, keys, prove, verify_proof
from rootseal.bundle import BundleReader
from rootseal.checks import Check, checking
from rootseal.cli_output import add_json, emit, printable, progress
from rootseal.cli_toolchain import add_toolchain, tools_from
from rootseal.errors import (
    CaptureError,
    ConfigError,
    KeyFormatError,
    SignatureError,
    VerificationError,
)
from rootseal.policy import POLICY_BYTES_MAX, Policy, parse_policy, posture_from_text
from rootseal.rego import check_rego
from rootseal.verify import (
    ArtifactDigest,
    VerifiedBuild,
    VerifiedRoot,
    read_root_unverified,
    verify_bundle,
    verify_root,
)

FAILED_SHOWN = 5


def register(subparsers: Any) -> None:
    """Add `verify` and `verify-proof`."""
    parser = subparsers.add_parser("verify", help="verify a bundle, and artifacts against it")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--artifact",
        metavar="FILE",
        action="append",
        default=[],
        help="file that must be an artifact of the build, by digest (repeatable)",
    )
    add_trust(parser)
    add_policy(parser)
    parser.add_argument(
        "--rego", metavar="FILE", help="policy in Rego over the root Statement (rootseal[rego])"
    )
    add_toolchain(parser)
    add_json(parser)
    parser.set_defaults(handler=verify)

    parser = subparsers.add_parser("verify-proof", help="verify a proof file of `rootseal prove`")
    parser.add_argument("proof", metavar="PROOF")
    parser.add_argument(
        "--artifact", metavar="FILE", help="file that an artifact proof must be about"
    )
    add_trust(parser)
    add_policy(parser)
    add_json(parser)
    parser.set_defaults(handler=verify_proof_file)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The options that say whom to trust; `trust_from` demands the first."""
    parser.add_argument(
        "--key",
        metavar="PUB",
        action="append",
        help="public key of the signer (repeatable: any of them may have signed)",
    )
    parser.add_argument(
        "--capture-key",
        metavar="PUB",
        action="append",
        help="accept only captures signed by this public key (repeatable); "
        "default: the capture keys that the signed root lists",
    )


def add_policy(parser: argparse.ArgumentParser) -> None:
    """The options that demand more than being genuine."""
    parser.add_argument("--policy", metavar="FILE", help="policy in TOML")
    parser.add_argument(
        "--require-posture",
        metavar="POSTURE",
        help="weakest posture to accept: walked, observed, held or sealed",
    )
    parser.add_argument(
        "--allow-losses",
        action="store_true",
        help="accept a build whose capture says that something may have been missed",
    )


def trust_from(
    arguments: argparse.Namespace,
) -> Tuple[Tuple[keys.PublicKey, ...], Optional[Tuple[keys.PublicKey, ...]]]:
    """The signing keys and the capture keys that the options name.

    Raises:
        SignatureError: No signing key, or a file that is no public key.
    """
    captures = arguments.capture_key
    with checking(Check.ROOT_SIGNATURE, SignatureError):
        if not arguments.key:
            raise SignatureError("no key was given; --key PUB says who may have signed")
    trusted = _public_keys(arguments.key, Check.ROOT_SIGNATURE)
    return trusted, None if captures is None else _public_keys(captures, Check.RECORD_SIGNATURE)


def _public_keys(paths: Sequence[str], check: Check) -> Tuple[keys.PublicKey, ...]:
    """A file that is no public key has signed nothing: the check that needs it refuses."""
    with checking(check, SignatureError):
        try:
            return keys.load_public_keys(paths)
        except KeyFormatError as error:
            raise SignatureError(str(error)) from None


def read_root(arguments: argparse.Namespace, bundle: BundleReader) -> VerifiedRoot:
    """The root of a bundle: verified if the options name keys, else only read."""
    if not arguments.key:
        if arguments.capture_key:
            raise ConfigError("--capture-key needs --key too")
        return read_root_unverified(bundle.root_envelope)
    trusted, capture_keys = trust_from(arguments)
    return verify_root(bundle.root_envelope, trusted=trusted, capture_keys=capture_keys)


def policy_from(arguments: argparse.Namespace) -> Policy:
    """The policy that the options name; flags may make a policy file stricter, never weaker."""
    policy = Policy()
    if arguments.policy is not None:
        policy = parse_policy(_text_of(arguments.policy), where=arguments.policy)
        if arguments.allow_losses and policy.require_zero_losses:
            raise ConfigError(
                "--allow-losses contradicts the policy's require_zero_losses = true; drop one"
            )
    posture = policy.required_posture
    if arguments.require_posture is not None:
        asked = posture_from_text(arguments.require_posture)
        posture = asked if posture is None or asked.rank > posture.rank else posture
    return dataclasses.replace(
        policy,
        required_posture=posture,
        require_zero_losses=policy.require_zero_losses and not arguments.allow_losses,
    )


def _text_of(path: str) -> str:
    """The text of a policy."""
    data = files.read_bounded(path, bytes_max=POLICY_BYTES_MAX, what="the policy")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"the policy {path} is not UTF-8") from None


def hash_artifact(path: str) -> ArtifactDigest:
    """Read a file in hand and digest it."""
    try:
        with Path(path).open("rb") as stream:
            found, _ = digest.sha256_file(stream)
    except OSError as error:
        raise ConfigError(f"cannot read the artifact {path}: {error.strerror}") from None
    return ArtifactDigest(path, found.hex())


def open_bundle(path: str) -> BundleReader:
    """Open a bundle (check 1)."""
    with checking(Check.BUNDLE_FORMAT, VerificationError):
        return BundleReader(path)


def verify(arguments: argparse.Namespace) -> int:
    """Verify a bundle."""
    trusted, capture_keys = trust_from(arguments)
    policy = dataclasses.replace(policy_from(arguments), tools=tools_from(arguments))
    artifacts = [hash_artifact(path) for path in arguments.artifact]
    with (
        open_bundle(arguments.bundle) as bundle,
        progress("verifying records", as_json=arguments.json) as advance,
    ):
        verified = verify_bundle(
            bundle,
            trusted=trusted,
            capture_keys=capture_keys,
            artifacts=artifacts,
            policy=policy,
            progress=advance,
        )
        if arguments.rego is not None:
            payload = envelope.parse(bundle.root_envelope).payload  # verified above
            check_rego(_text_of(arguments.rego), payload, where=arguments.rego)
    seals = {path: measure_again(path, name, verified.root) for path, name in verified.artifacts}
    text = _describe(arguments.bundle, verified, seals)
    emit(arguments, text, _document(verified, seals))
    return 0


def measure_again(path: str, name: str, root: VerifiedRoot) -> Optional[str]:
    """Part of check 5 for an artifact that was sealed: if it still is, it measures the same.

    Returns:
        `measured`; `copy` if the file in hand is not sealed (its SHA-256 was compared all the
        same); None if the build did not seal it.
    """
    expected = dict(root.predicate.seals.digests).get(name)
    if expected is None:
        return None
    sizes = {item.name: item.size for t in root.predicate.targets for item in t.artifacts}
    with checking(Check.ARTIFACTS, VerificationError):
        try:
            real = os.path.realpath(path)  # what was hashed; a link itself is not sealed
            sealed = fsverity.check_sealed(real, expected=bytes.fromhex(expected), size=sizes[name])
        except CaptureError as error:
            raise VerificationError(str(error)) from None
    return "measured" if sealed else "copy"


def verify_proof_file(arguments: argparse.Namespace) -> int:
    """Verify a proof."""
    trusted, capture_keys = trust_from(arguments)
    policy = policy_from(arguments)
    if policy.needs_whole_build:
        raise ConfigError(
            "the policy demands what one proof cannot show (targets, counters, materials, keys, "
            "hosts, exit codes); give it to `rootseal verify` with the bundle"
        )
    data = files.read_bounded(arguments.proof, bytes_max=prove.PROOF_BYTES_MAX, what="the proof")
    fact = verify_proof.verify_proof(
        data, trusted=trusted, capture_keys=capture_keys, policy=policy
    )
    if arguments.artifact is not None:
        _check_artifact(arguments.artifact, fact)
    posture = fact.root.predicate.summary["posture"]
    text = f"verified: {fact.claim}; posture of the build: {posture}"
    emit(arguments, printable(text), {"kind": fact.kind, "claim": fact.claim, **fact.data})
    return 0


def _check_artifact(path: str, fact: verify_proof.ProvenFact) -> None:
    if fact.kind != "artifact":
        raise ConfigError(f"--artifact goes with an artifact proof; this is a proof of {fact.kind}")
    found = hash_artifact(path)
    with checking(Check.ARTIFACTS, VerificationError):
        if found.sha256 != fact.data["sha256"]:
            raise VerificationError(
                f"{path} (sha256 {found.sha256}) is not the artifact that the proof is about"
            )


_SEAL_TEXT = {
    None: "",
    "measured": ", sealed with fs-verity and measured again",
    "copy": ", a copy that is not sealed",
}


def _describe(path: str, verified: VerifiedBuild, seals: Mapping[str, Optional[str]]) -> str:
    summary = verified.root.predicate.summary
    lines: List[str] = [
        f"verified {path}: {summary['actions']} actions, {summary['targets']} targets, "
        f"{summary['materials']} materials, {summary['products']} products",
        f"posture {verified.posture.value}, losses "
        + (", ".join(sorted(verified.losses)) or "none")
        + f", signed by {verified.root.keyid[:16]}",
    ]
    if verified.failed:
        lines.append(_describe_failed(verified.failed))
    if verified.root.predicate.seals.failures:
        lines.append(f"fs-verity seals that failed: {verified.root.predicate.seals.failures}")
    lines += [
        f"artifact {file} is {name}{_SEAL_TEXT[seals[file]]}" for file, name in verified.artifacts
    ]
    return "\n".join(printable(line) for line in lines)


def _describe_failed(failed: Sequence[Tuple[str, int]]) -> str:
    """What a reader must not take for success: a failure is attested as well as anything."""
    shown = ", ".join(f"{key[:16]} with {code}" for key, code in failed[:FAILED_SHOWN])
    more = f" and {len(failed) - FAILED_SHOWN} more" if len(failed) > FAILED_SHOWN else ""
    return f"FAILED actions (exit code not 0): {shown}{more}"


def _document(verified: VerifiedBuild, seals: Mapping[str, Optional[str]]) -> dict[str, object]:
    predicate = verified.root.predicate
    return {
        "keyid": verified.root.keyid,
        "captureKeyids": [key.keyid for key in verified.root.capture_keys],
        "posture": verified.posture.value,
        "losses": dict(verified.losses),
        "failedActions": [{"actionKey": key, "exitCode": code} for key, code in verified.failed],
        "tree": dict(predicate.document["tree"]),  # type: ignore[call-overload]
        "summary": dict(predicate.summary),
        "subjects": [{"name": item.name, "sha256": item.sha256} for item in verified.root.subjects],
        "artifacts": [
            {"path": path, "name": name, "fsverity": seals[path]}
            for path, name in verified.artifacts
        ],
    }
