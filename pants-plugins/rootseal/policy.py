"""What a verifier accepts beyond being genuine. Pure, except that it parses TOML text."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import ipaddress
import re
import sys
from typing import Any, List, Mapping, Optional, Tuple, Union

from rootseal import diagnostics
from rootseal.errors import ConfigError
from rootseal.observation import Posture
from rootseal.toolchain import TrustedTools

POLICY_BYTES_MAX = 1 << 20
LIST_ITEMS_MAX = 1000
DOTS_MAX = 1000
# A string without an end is passed up to the end of its line, where the parser refuses it: to look
# for the end anew from each quote takes quadratic time too.
_TOML_STRING = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?""")
EXIT_CODE_MAX = 255
_KEYS = {
    "required_posture",
    "require_zero_losses",
    "required_targets",
    "forbidden_materials",
    "counters_min",
    "counters_max",
    "trusted_signing_keys",
    "trusted_capture_keys",
    "allowed_hosts",
    "allowed_exit_codes",
}
_KEY_ID = re.compile("[0-9a-f]{64}")
UNIX = "unix:"


Networks = Tuple[Union[ipaddress.IPv4Network, ipaddress.IPv6Network], ...]


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Whom actions may connect to.

    Attributes:
        networks: Addresses.
        names: Globs of TLS server names, which are what the action itself said.
        sockets: Globs of paths of Unix sockets (`@` stands for an abstract name).
    """

    networks: Networks
    names: Tuple[str, ...]
    sockets: Tuple[str, ...]

    def allow_address(self, text: str) -> bool:
        """Whether a network holds this address; an IPv4 address mapped into IPv6 is itself."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)

    def allow_name(self, name: str) -> bool:
        """Whether a glob matches this TLS server name; an empty one says nothing."""
        return bool(name) and any(fnmatch.fnmatchcase(name.lower(), glob) for glob in self.names)

    def allow_socket(self, path: str) -> bool:
        """Whether a glob matches the path of a Unix socket."""
        return any(fnmatch.fnmatchcase(path, glob) for glob in self.sockets)


@dataclasses.dataclass(frozen=True)
class Policy:
    """A verifier's demands; the defaults are strict about losses and silent about posture.

    Attributes:
        required_posture: The weakest posture that is accepted, or None for any.
        require_zero_losses: Refuse a build in which any gating counter is not zero.
        tools: What actions may execute from outside their sandboxes, or None for anything.
        required_targets: Addresses that the build must have targets of.
        forbidden_materials: Globs; no action may have read a path that one of them matches.
        counters_min: The least value of a counter in each action.
        counters_max: The greatest value of a counter in each action.
        trusted_signing_keys: Ids of the keys that may have signed the root; none: any of --key.
        trusted_capture_keys: Ids of the keys that may have signed records; none: any of the root's.
        allowed_hosts: Whom actions may have connected to; None: anybody.
        allowed_exit_codes: What actions may have ended with (128 + signal); None: anything.
    """

    required_posture: Optional[Posture] = None
    require_zero_losses: bool = True
    tools: Optional[TrustedTools] = None
    required_targets: Tuple[str, ...] = ()
    forbidden_materials: Tuple[str, ...] = ()
    counters_min: Tuple[Tuple[str, int], ...] = ()
    counters_max: Tuple[Tuple[str, int], ...] = ()
    trusted_signing_keys: Tuple[str, ...] = ()
    trusted_capture_keys: Tuple[str, ...] = ()
    allowed_hosts: Optional[Hosts] = None
    allowed_exit_codes: Optional[Tuple[int, ...]] = None

    @property
    def needs_whole_build(self) -> bool:
        """Whether it demands what only a whole bundle can show."""
        return bool(
            self.required_targets
            or self.forbidden_materials
            or self.counters_min
            or self.counters_max
            or self.trusted_signing_keys
            or self.trusted_capture_keys
            or self.allowed_hosts is not None
            or self.allowed_exit_codes is not None
        )


def posture_from_text(text: str) -> Posture:
    """The posture with this name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return Posture(text)
    except ValueError:
        names = ", ".join(posture.value for posture in Posture)
        raise ConfigError(f"unknown posture {text!r}; use one of {names}") from None


def parse_policy(text: str, *, where: str) -> Policy:
    """Read a policy from TOML; docs/verification.md has every key.

    Raises:
        ConfigError: Not TOML, an unknown key, or a value of the wrong kind.
    """
    if _dots_outside_strings(text) > DOTS_MAX:
        raise ConfigError(f"{where} has more than {DOTS_MAX} dots in its keys; no key is like that")
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        values: Mapping[str, object] = toml.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    unknown = set(values) - _KEYS
    if unknown:
        raise ConfigError(f"{where} has the unknown key {sorted(unknown)[0]!r}")
    posture, zero = values.get("required_posture"), values.get("require_zero_losses", True)
    if not isinstance(zero, bool) or not isinstance(posture, (str, type(None))):
        raise ConfigError(f"{where} needs text for required_posture, true or false for the other")
    return Policy(
        required_posture=None if posture is None else posture_from_text(posture),
        require_zero_losses=zero,
        required_targets=_texts(values, "required_targets", where),
        forbidden_materials=_texts(values, "forbidden_materials", where),
        counters_min=_counters(values, "counters_min", where),
        counters_max=_counters(values, "counters_max", where),
        trusted_signing_keys=_key_ids(values, "trusted_signing_keys", where),
        trusted_capture_keys=_key_ids(values, "trusted_capture_keys", where),
        allowed_hosts=_hosts(values, where),
        allowed_exit_codes=_exit_codes(values, where),
    )


def _dots_outside_strings(text: str) -> int:
    """An upper bound of the parts of a dotted key, for which the parser takes quadratic time."""
    if "'''" in text or '"""' in text:  # not to be told apart without parsing: count all
        return text.count(".")
    return _TOML_STRING.sub("", text).count(".")


def _texts(values: Mapping[str, object], key: str, where: str) -> Tuple[str, ...]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise ConfigError(f"{where} needs a list of texts for {key}")
    if len(found) > LIST_ITEMS_MAX:
        raise ConfigError(f"{where} has more than {LIST_ITEMS_MAX} items in {key}")
    return tuple(found)


def _key_ids(values: Mapping[str, object], key: str, where: str) -> Tuple[str, ...]:
    found = _texts(values, key, where)
    for item in found:
        if not _KEY_ID.fullmatch(item):
            raise ConfigError(f"{where}: {key} has {item!r}, which is no key id (64 hex digits)")
    if key in values and not found:
        raise ConfigError(f"{where}: {key} trusts nobody; name a key, or leave it out")
    return found


def _hosts(values: Mapping[str, object], where: str) -> Optional[Hosts]:
    if "allowed_hosts" not in values:
        return None
    networks: List[Union[ipaddress.IPv4Network, ipaddress.IPv6Network]] = []
    names: List[str] = []
    sockets: List[str] = []
    for item in _texts(values, "allowed_hosts", where):
        if item.startswith(UNIX):
            sockets.append(item[len(UNIX) :])
        elif re.fullmatch(r"[0-9a-fA-F.:]+(/[0-9]+)?", item) and re.search(r"[.:]\d|::", item):
            try:
                networks.append(ipaddress.ip_network(item))
            except ValueError as error:
                raise ConfigError(f"{where}: allowed_hosts: {error}") from None
        elif re.fullmatch(r"[\w*?.-]+", item) and item.strip("*?."):
            names.append(item.lower())
        else:
            raise ConfigError(
                f"{where}: allowed_hosts has {item!r}; use an address, a network in CIDR form, a "
                "host name (with globs), or unix:PATH"
            )
    return Hosts(tuple(networks), tuple(names), tuple(sockets))


def _exit_codes(values: Mapping[str, object], where: str) -> Optional[Tuple[int, ...]]:
    if "allowed_exit_codes" not in values:
        return None
    found = values["allowed_exit_codes"]
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where} needs a list of at least one number for allowed_exit_codes")
    for item in found:
        if type(item) is not int or not 0 <= item <= EXIT_CODE_MAX:
            raise ConfigError(f"{where}: allowed_exit_codes has {item!r}; use 0 to {EXIT_CODE_MAX}")
    return tuple(sorted(set(found)))


def _counters(values: Mapping[str, object], key: str, where: str) -> Tuple[Tuple[str, int], ...]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{where} needs a table of counters for {key}")
    for name, value in found.items():
        if name not in diagnostics.BY_NAME:
            raise ConfigError(f"{where}: {key} names the unknown counter {name!r}")
        if type(value) is not int or not 0 <= value <= diagnostics.COUNTER_VALUE_MAX:
            raise ConfigError(f"{where}: {key}.{name} must be an integer from 0 to 2^53-1")
    return tuple(sorted(found.items()))
