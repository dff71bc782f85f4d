"""How descriptors are shared out: events come first, and nothing ever adds up to more than all."""

from __future__ import annotations

import pytest
from rootseal import daemon_limits as limits
from rootseal.errors import ConfigError

OWN = 50


@pytest.mark.parametrize("cpus", [1, 2, 8, 64, 256, 1024])
@pytest.mark.parametrize("limit", [192, 256, 512, 1024, 4096, 65536, 2**31 - 1])
def test_the_shares_never_exceed_the_limit(limit: int, cpus: int) -> None:
    events = limits.event_share(limit, cpus)
    found = limits.shares(events, OWN, slots=120, clients=1024)
    total = found.events.descriptors + OWN + limits.SPARE_DESCRIPTORS
    total += found.slots * limits.ACTION_DESCRIPTORS + found.clients
    total += found.working * (limits.WORK_DESCRIPTORS + events.events_per_read)
    assert total <= limit
    assert events.descriptors <= limit // 4 + events.events_per_read
    assert 1 <= found.working <= found.slots <= 120
    assert limits.CLIENTS_MIN <= found.clients <= 1024
    assert 1 <= events.shards <= min(cpus, limits.SHARDS_MAX)


def test_a_high_limit_bounds_nothing() -> None:
    events = limits.event_share(65536, 2)
    found = limits.shares(events, OWN, slots=120, clients=1024)
    assert (found.slots, found.working, found.clients) == (120, 120, 1024)
    assert (events.shards, events.events_per_read, events.long_hashes) == (2, 8, 64)


@pytest.mark.parametrize("limit", [1, 16, 64, 96])
def test_a_limit_too_low_for_one_action_says_what_is_needed(limit: int) -> None:
    events = limits.event_share(limit, 2)
    with pytest.raises(ConfigError, match="too low to capture even one action") as caught:
        limits.shares(events, OWN, slots=120, clients=1024)
    needed = int(str(caught.value).partition("at least ")[2].split()[0])
    assert limits.shares(limits.event_share(needed, 2), OWN, slots=120, clients=1024).slots >= 1
    assert "daemon ensure" in str(caught.value) and str(limits.REMEDY_LIMIT) in str(caught.value)
