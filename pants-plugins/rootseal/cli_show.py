"""`rootseal show`: what a bundle says, for reading (nothing is judged; `verify` judges)."""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict, Iterator, List, Mapping, Optional

from rootseal import canonical, leaf_table, opens_table, predicate, record, schema, statement
from rootseal.bundle import BundleReader, IndexEntry
from rootseal.checks import Check, checking
from rootseal.cli_output import add_json, printable
from rootseal.cli_verify import add_trust, open_bundle, read_root
from rootseal.envelope import parse as parse_envelope
from rootseal.errors import ConfigError, StatementError
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import DigestSource, LeafKind
from rootseal.record import ActionRecord
from rootseal.verify import VerifiedRoot

_KEY_PREFIX_CHARACTERS_MIN = 6
COMMAND_CHARACTERS_SHOWN = 200


def register(subparsers: Any) -> None:
    """Add `show`."""
    parser = subparsers.add_parser("show", help="print what a bundle says, without judging it")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--action", metavar="KEY", help="one action (a prefix of its key will do)")
    parser.add_argument(
        "--expand", action="store_true", help="every material and product, and who opened what"
    )
    add_trust(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Show a bundle, one action at a time."""
    with open_bundle(arguments.bundle) as bundle:
        root = read_root(arguments, bundle)
        entries = _chosen(bundle, arguments.action)
        actions = (_action_document(bundle, entry, arguments.expand) for entry in entries)
        if arguments.json:
            _print_json(root, actions, verified=bool(arguments.key))
        else:
            _print_text(root, actions, verified=bool(arguments.key), whole=not arguments.action)
    return 0


def expand_processes(
    document: Mapping[str, object], materials: List[Leaf], opens: bytes
) -> List[Dict[str, object]]:
    """The process table with an `openedfiles` map and the environment of each process.

    Args:
        document: The action predicate.
        materials: Leaves of its materials table, in order.
        opens: Its opens table, not compressed.
    """
    processes = [schema.as_object(item) for item in schema.as_list(document["processes"])]
    walk = opens_table.iter_processes(
        opens, process_count=len(processes), material_count=len(materials)
    )
    environments = schema.as_list(document["environments"])
    return [
        {
            **process,
            **_environ_of(process, environments),
            "openedfiles": _opened_files(materials[index] for index in indices),
        }
        for process, indices in zip(processes, walk)
    ]


def _environ_of(process: Mapping[str, object], environments: List[object]) -> Mapping[str, object]:
    if "environ" not in process:
        return {}
    return {"environ": environments[schema.as_integer(process["environ"])]}


def _opened_files(leaves: Iterator[Leaf]) -> Dict[str, Dict[str, object]]:
    opened: Dict[str, Dict[str, object]] = {}
    for leaf in leaves:
        path, sha256 = canonical.path_text(leaf.path), leaf.digest.hex()
        if path not in opened:
            opened[path] = {"sha256": sha256}
        elif opened[path]["sha256"] != sha256:  # opened with two contents: neither may vanish
            schema.as_list(opened[path].setdefault("otherSha256", [])).append(sha256)
    return opened


def _chosen(bundle: BundleReader, prefix: Optional[str]) -> List[IndexEntry]:
    if prefix is None:
        return list(bundle.entries())
    if len(prefix) < _KEY_PREFIX_CHARACTERS_MIN:
        raise ConfigError(f"--action needs at least {_KEY_PREFIX_CHARACTERS_MIN} digits of the key")
    found = [item for item in bundle.entries() if item.action_key.hex().startswith(prefix)]
    if not found:
        raise ConfigError(f"the bundle has no action {prefix}; `rootseal show` lists them")
    return found


def _action_document(bundle: BundleReader, entry: IndexEntry, expand: bool) -> Dict[str, object]:
    about = f"action {entry.action_key.hex()[:16]}"
    with checking(Check.RECORD_FORMAT, StatementError, about=about):
        parts = record.parse_record(bundle.read_record(entry))
        payload = parse_envelope(parts.envelope).payload
        signed = statement.parse(payload, predicate_type=statement.ACTION_TYPE)
        document = dict(predicate.read_action_predicate(signed.predicate).document)
        if expand:
            document.update(_expanded(document, parts))
    return document


def _expanded(document: Mapping[str, object], parts: ActionRecord) -> Dict[str, object]:
    materials = list(_leaves(parts.tables.materials, Domain.MATERIAL))
    products = _leaves(parts.tables.products, Domain.PRODUCT)
    opens = leaf_table.decompress(parts.tables.opens)
    return {
        "materialFiles": [_leaf(leaf) for leaf in materials],
        "productFiles": [_leaf(leaf) for leaf in products],
        "processes": expand_processes(document, materials, opens),
    }


def _leaves(stored: bytes, domain: Domain) -> Iterator[Leaf]:
    return leaf_table.iter_leaves(leaf_table.decompress(stored), domain)


def _leaf(leaf: Leaf) -> Dict[str, object]:
    return {
        "path": canonical.path_text(leaf.path),
        "sha256": leaf.digest.hex(),
        "size": leaf.size,
        "mode": f"{leaf.mode:04o}",
        "kind": LeafKind(leaf.kind).name.lower(),
        "digestSource": DigestSource(leaf.source).text,
    }


def _print_json(
    root: VerifiedRoot, actions: Iterator[Dict[str, object]], *, verified: bool
) -> None:
    head = {"ok": True, "signatureVerified": verified, "keyid": root.keyid}
    subjects = [{"name": item.name, "sha256": item.sha256} for item in root.subjects]
    text = json.dumps({**head, "subjects": subjects, "build": root.predicate.document})
    print(text[:-1] + ', "actions": [', end="")
    for number, action in enumerate(actions):
        print((", " if number else "") + json.dumps(action), end="")
    print("]}")


def _print_text(
    root: VerifiedRoot, actions: Iterator[Dict[str, object]], *, verified: bool, whole: bool
) -> None:
    if whole:
        for line in _head_lines(root, verified):
            print(printable(line))
    for action in actions:
        for line in _action_lines(action):
            print(printable(line))


def _head_lines(root: VerifiedRoot, verified: bool) -> Iterator[str]:
    found, summary = root.predicate, root.predicate.summary
    losses = [str(name) for name in schema.as_list(summary["losses"])]
    yield f"tree     {found.tree_root.hex()} over {found.tree_size} actions"
    state = "verified" if verified else "NOT verified here; give --key, or use `rootseal verify`"
    yield f"signed   by {root.keyid} ({state})"
    yield f"posture  {summary['posture']}"
    yield "losses   " + (", ".join(losses) or "none")
    yield f"files    {summary['materials']} materials, {summary['products']} products"
    for subject in root.subjects:
        yield f"subject  {subject.name} sha256:{subject.sha256}"
    for target in found.targets:
        yield f"target   {target.address}: {target.action_count} actions"


def _action_lines(action: Mapping[str, object]) -> Iterator[str]:
    summary = schema.as_object(action["summary"])
    posture = schema.as_object(schema.as_object(action["capture"])["posture"])["achieved"]
    words = " ".join(str(word) for word in schema.as_list(action["cmd"]))
    yield (
        f"action   {str(action['actionKey'])[:16]} exit {action['exitcode']} {posture} "
        f"{summary['materials']} materials {summary['products']} products: "
        f"{words[:COMMAND_CHARACTERS_SHOWN]}"
    )
    yield from _mutation_lines(action)
    for title in ("materialFiles", "productFiles"):
        files = action.get(title)
        for item in files if isinstance(files, list) else ():
            word = "read" if title == "materialFiles" else "left"
            yield f"  {word} {item['path']} sha256:{item['sha256']} {item['digestSource']}"


def _mutation_lines(action: Mapping[str, object]) -> Iterator[str]:
    for entry in schema.as_list(action["mutations"]):
        item = schema.as_object(entry)
        later = f"sha256:{item['digestLater']}" if item["digestLater"] else "could not be read"
        when = "when it was read again" if item["when"] == "access" else "at the end"
        yield (
            f"  CHANGED by others: {item['path']} sha256:{item['digestAtOpen']} at the open, "
            f"{later} {when}"
        )
    if action["mutationsLeftOut"]:
        yield f"  CHANGED by others: {action['mutationsLeftOut']} more, without digests"
