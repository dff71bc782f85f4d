"""What a verifier accepts beyond being genuine. Pure, except that it parses TOML text."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any, Mapping, Optional

from rootseal.errors import ConfigError
from rootseal.observation import Posture
from rootseal.toolchain import TrustedTools

POLICY_BYTES_MAX = 1 << 20


@dataclasses.dataclass(frozen=True)
class Policy:
    """A verifier's demands; the defaults are strict about losses and silent about posture.

    Attributes:
        required_posture: The weakest posture that is accepted, or None for any.
        require_zero_losses: Refuse a build in which any gating counter is not zero.
        tools: What actions may execute from outside their sandboxes, or None for anything.
    """

    required_posture: Optional[Posture] = None
    require_zero_losses: bool = True
    tools: Optional[TrustedTools] = None


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
    """Read a policy from TOML: `required_posture = "held"`, `require_zero_losses = true`.

    Raises:
        ConfigError: Not TOML, an unknown key, or a value of the wrong kind.
    """
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        values: Mapping[str, object] = toml.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    unknown = set(values) - {"required_posture", "require_zero_losses"}
    if unknown:
        raise ConfigError(f"{where} has the unknown key {sorted(unknown)[0]!r}")
    posture, zero = values.get("required_posture"), values.get("require_zero_losses", True)
    if not isinstance(zero, bool) or not isinstance(posture, (str, type(None))):
        raise ConfigError(f"{where} needs text for required_posture, true or false for the other")
    return Policy(None if posture is None else posture_from_text(posture), zero)
