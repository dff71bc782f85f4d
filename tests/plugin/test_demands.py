"""[rootseal] options: flags and variables strengthen pants.toml; a contradiction names both."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Mapping, Sequence

import pytest
from conftest import wrapping_engine
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.process import FallibleProcessResult, Process
from pants.engine.unions import UnionMembership
from pants.option.global_options import GlobalOptions
from pants.option.options_bootstrapper import OptionsBootstrapper
from rootseal.errors import ConfigError
from rootseal_pants.demands import Demands, demands_of
from rootseal_pants.subsystem import RootsealSubsystem

Read = Callable[..., Demands]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads the demands of a pants.toml, flags, Pants' variables and the user's own."""

    def demands(
        toml: str = "",
        flags: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Demands:
        config = tmp_path / "pants.toml"
        config.write_text(f"[rootseal]\n{toml}\n")
        bootstrapper = OptionsBootstrapper.create(
            args=["pants", f"--pants-config-files=['{config}']", *flags],
            env=dict(variables or {}),
            allow_pantsrc=False,
        )
        options = bootstrapper.full_options_for_scopes(
            [GlobalOptions.get_scope_info(), RootsealSubsystem.get_scope_info()],
            UnionMembership({}),
        )
        return demands_of(options, environ or {})

    return demands


def test_nothing_said_gives_the_defaults(read: Read) -> None:
    assert read() == Demands("auto", "auto", "auto", "standard", False)


def test_each_source_may_strengthen(read: Read) -> None:
    assert read('hardening = "off"', ["--rootseal-hardening=strict"]).hardening == "strict"
    assert read(variables={"PANTS_ROOTSEAL_HARDENING": "strict"}).hardening == "strict"
    assert read(flags=["--rootseal-require-zero-drops"]).require_zero_drops
    assert read(environ={"ROOTSEAL_FANOTIFY": "1"}).fanotify == "on"
    assert read(flags=["--rootseal-hardening=off"]).hardening == "off"  # no file demands more


def test_auto_takes_nothing_back(read: Read) -> None:
    assert read('fanotify = "on"', ["--rootseal-fanotify=auto"]).fanotify == "on"
    assert read('fsverity = "off"', variables={"PANTS_ROOTSEAL_FSVERITY": "auto"}).fsverity == "off"


STRICT = 'hardening = "strict"'
CONTRADICTIONS = [
    (STRICT, ["--rootseal-hardening=standard"], {}, ["--rootseal-hardening=standard", "strict ("]),
    (STRICT, [], {"PANTS_ROOTSEAL_HARDENING": "off"}, ["PANTS_ROOTSEAL_HARDENING=off", "strict ("]),
    (
        "require_zero_drops = true",
        ["--no-rootseal-require-zero-drops"],
        {},
        ["--no-rootseal-require-zero-drops", "[rootseal].require_zero_drops = on (", "pants.toml"],
    ),
    ('fanotify = "on"', ["--rootseal-fanotify=off"], {}, ["--rootseal-fanotify=off", "= on ("]),
    ('fanotify = "on"', [], {"ROOTSEAL_FANOTIFY": "0"}, ["ROOTSEAL_FANOTIFY=0", "= on ("]),
    (STRICT, [], {"ROOTSEAL_FSVERITY": "off"}, ["strict (", "ROOTSEAL_FSVERITY=off"]),
    (STRICT, ["--rootseal-capture-mode=walk"], {}, ["strict (", "--rootseal-capture-mode=walk"]),
    (
        STRICT,
        ["--no-rootseal-require-zero-drops"],
        {},
        ["strict (", "--no-rootseal-require-zero-drops"],
    ),
]


@pytest.mark.parametrize(("toml", "flags", "variables", "named"), CONTRADICTIONS)
def test_a_contradiction_names_both(
    read: Read, toml: str, flags: list[str], variables: dict[str, str], named: list[str]
) -> None:
    with pytest.raises(ConfigError, match="drop one of them") as error:
        read(toml, flags, variables, variables)
    for text in named:
        assert text in str(error.value)


def test_a_contradiction_runs_no_action(executable: str, daemon_socket: str) -> None:
    engine = wrapping_engine(
        executable, daemon_socket, "--rootseal-hardening=strict", "--rootseal-fanotify=off"
    )
    with pytest.raises(ExecutionError) as caught:
        engine.request(FallibleProcessResult, [Process(["/bin/true"], description="nothing")])
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, ConfigError)
    assert "--rootseal-hardening=strict contradicts --rootseal-fanotify=off" in str(error)
