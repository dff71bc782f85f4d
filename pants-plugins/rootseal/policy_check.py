"""Check 20 for a whole build: what a policy demands of its actions and targets. Pure."""

from __future__ import annotations

import errno
import fnmatch
import re
from typing import Mapping, Optional, Pattern, Sequence

from rootseal import canonical, leaf_path, leaf_table, schema
from rootseal.build_predicate import Target
from rootseal.checks import Check, checking
from rootseal.errors import PolicyError
from rootseal.leaf_table import Domain
from rootseal.observation import Posture
from rootseal.policy import Hosts, Policy
from rootseal.record_check import VerifiedRecord, action_root, refuse_unseen

# A connection that failed for good reached nobody; these may still succeed later.
_PENDING = frozenset((-errno.EINPROGRESS, -errno.EALREADY, -errno.EINTR, -errno.EAGAIN, -512))
_NOBODY = frozenset(("AF_UNSPEC", "AF_NETLINK"))  # a disconnect, and the kernel itself


def check_policy_signer(keyid: str, policy: Policy) -> None:
    """The root was signed by a key that the policy trusts.

    Raises:
        PolicyError: It was not; names the key.
    """
    with checking(Check.POLICY, PolicyError):
        _trusted(keyid, policy.trusted_signing_keys, "build was signed")


def _trusted(keyid: str, trusted: Sequence[str], what: str) -> None:
    if trusted and keyid not in trusted:
        raise PolicyError(
            f"the {what} by the key {keyid}, which the policy does not trust",
            data={"keyid": keyid, "trusted": list(trusted)},
        )


def check_policy_targets(targets: Sequence[Target], policy: Policy) -> None:
    """Every required target is there.

    Raises:
        PolicyError: Names the first that is not.
    """
    with checking(Check.POLICY, PolicyError):
        missing = set(policy.required_targets) - {target.address for target in targets}
        if missing:
            raise PolicyError(
                f"the required target {min(missing)!r} is not in this build",
                data={"missing": sorted(missing)},
            )


def check_policy_action(verified: VerifiedRecord, policy: Policy, *, about: str) -> None:
    """One action's counters and exit code are allowed, it read and met nothing forbidden.

    Raises:
        PolicyError: Names the counter, the exit code, the path, the key or the host.
    """
    with checking(Check.POLICY, PolicyError, about=about):
        for name, least in policy.counters_min:
            if verified.counters[name] < least:
                raise _counter(name, verified.counters[name], "at least", least)
        for name, most in policy.counters_max:
            if verified.counters[name] > most:
                raise _counter(name, verified.counters[name], "at most", most)
        _check_exit_code(verified, policy.allowed_exit_codes)
        _trusted(verified.keyid, policy.trusted_capture_keys, "action was captured")
        if policy.tools is not None:
            refuse_unseen(verified.losses, "no other tool was used")
        if policy.allowed_hosts is not None:
            _check_hosts(verified, policy.allowed_hosts)
        if policy.forbidden_materials:
            _check_materials(verified, _matcher(policy.forbidden_materials))


def _check_exit_code(verified: VerifiedRecord, allowed: Optional[Sequence[int]]) -> None:
    code = schema.as_integer(verified.predicate.document["exitcode"])
    if allowed is not None and code not in allowed:
        raise PolicyError(
            f"it ended with exit code {code}, allowed_exit_codes has "
            f"{', '.join(str(item) for item in allowed)}",
            data={"exitCode": code, "allowed": list(allowed)},
        )


def _counter(name: str, value: int, bound: str, wanted: int) -> PolicyError:
    return PolicyError(
        f"the counter {name} is {value}, {bound} {wanted} is required",
        data={"counter": name, "value": value, "required": wanted},
    )


def _matcher(globs: Sequence[str]) -> Pattern[str]:
    """`*` and `?` match slashes too: a glob that forbids should rather match too much."""
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


def _check_materials(verified: VerifiedRecord, forbidden: Pattern[str]) -> None:
    if verified.predicate.posture.rank < Posture.OBSERVED.rank:
        raise PolicyError(
            f"posture {verified.predicate.posture.value} does not see reads, so it cannot show "
            "that no forbidden material was read"
        )
    refuse_unseen(verified.losses, "no forbidden material was read")
    stored, root = verified.record.tables.materials, action_root(verified.predicate)
    found = _first_match(stored, root, forbidden)
    if found is not None:
        raise PolicyError(f"it read the forbidden material {found!r}", data={"path": found})


def _first_match(stored: bytes, root: bytes, forbidden: Pattern[str]) -> Optional[str]:
    """The first path that a glob matches, as the table has it or made absolute.

    What lies in the action's root is relative in the table: `.ssh/id_rsa` in a home directory.
    """
    raw = leaf_table.decompress(stored)
    for leaf in leaf_table.iter_leaves(raw, Domain.MATERIAL):
        for path in (leaf.path, leaf_path.absolute(leaf.path, root)):
            text = canonical.path_text(path)
            if forbidden.match(text):
                return text
    return None


def _check_hosts(verified: VerifiedRecord, hosts: Hosts) -> None:
    refuse_unseen(verified.losses, "it met nobody else")
    processes = [
        schema.as_object(p) for p in schema.as_list(verified.predicate.document["processes"])
    ]
    if not processes or not all("network" in process for process in processes):
        raise PolicyError("no trace watched its connections, so nothing shows whom it met")
    for process in processes:
        for event in map(schema.as_object, schema.as_list(process["syscallEvents"])):
            if event["syscall"] == "io_uring_setup" and not _failed(event["result"]):
                raise PolicyError("it used io_uring, whose connections no trace sees")
        network = schema.as_object(process["network"])
        for connection in map(schema.as_object, schema.as_list(network["connections"])):
            _check_connection(connection, hosts)


def _failed(result: object) -> bool:
    """For good; null is a call whose end nobody saw."""
    return type(result) is int and result < 0 and result not in _PENDING


def _check_connection(connection: Mapping[str, object], hosts: Hosts) -> None:
    family, address = str(connection["family"]), str(connection["address"])
    if family in _NOBODY or _failed(connection["result"]):
        return
    if family == "AF_UNIX":
        allowed = hosts.allow_socket(address)
    else:
        allowed = hosts.allow_address(address) or hosts.allow_name(str(connection["hostname"]))
    if not allowed:
        named = f" ({connection['hostname']})" if connection["hostname"] else ""
        place = f"unix:{address}" if family == "AF_UNIX" else f"{address}{named}"
        raise PolicyError(
            f"it connected to {place} by {family}, which allowed_hosts does not have",
            data={"family": family, "address": address, "hostname": connection["hostname"]},
        )
