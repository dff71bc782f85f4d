"""[rootseal] options: flags and variables strengthen pants.toml; a contradiction names both."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Iterator, Mapping, Sequence

import pytest
from conftest import wrapping_engine
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.process import FallibleProcessResult, Process
from pants.engine.unions import UnionMembership
from pants.option.global_options import GlobalOptions
from pants.option.options_bootstrapper import OptionsBootstrapper
from pants.option.ranked_value import Rank
from rootseal.errors import ConfigError
from rootseal_pants.demands import Demands, demands_of, said_of
from rootseal_pants.subsystem import RootsealSubsystem, Switch

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
    assert read(environ={"ROOTSEAL_HARDENING": "strict"}).hardening == "strict"
    assert read('hardening = "off"', environ={"ROOTSEAL_HARDENING": "strict"}).hardening == "strict"
    weak = {"ROOTSEAL_HARDENING": "off", "ROOTSEAL_REQUIRE_ZERO_DROPS": "0"}
    assert read(environ=weak) == Demands("auto", "off", "off", "off", False)
    assert read(flags=["--rootseal-hardening=strict"], environ={"ROOTSEAL_HARDENING": "off"})
    assert read(environ={"ROOTSEAL_REQUIRE_ZERO_DROPS": "1"}).require_zero_drops
    assert read(flags=["--rootseal-hardening=off"]).hardening == "off"  # no file demands more


def test_at_the_level_off_auto_is_off(read: Read) -> None:
    assert read('hardening = "off"') == Demands("auto", "off", "off", "off", False)
    assert read('hardening = "off"', ["--rootseal-fanotify=on"]).fanotify == "on"
    assert read('hardening = "off"', ["--rootseal-capture-mode=trace:ebpf"]).fanotify == "auto"


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
    (STRICT, [], {"ROOTSEAL_HARDENING": "standard"}, ["strict (", "ROOTSEAL_HARDENING=standard"]),
    (STRICT, [], {"ROOTSEAL_REQUIRE_ZERO_DROPS": "0"}, ["strict (", "_REQUIRE_ZERO_DROPS=0"]),
    (
        "",
        ["--no-rootseal-require-zero-drops"],
        {"ROOTSEAL_REQUIRE_ZERO_DROPS": "1"},
        ["--no-rootseal-require-zero-drops", "ROOTSEAL_REQUIRE_ZERO_DROPS=1"],
    ),
    (
        "",
        ["--rootseal-hardening=standard"],
        {"ROOTSEAL_HARDENING": "strict"},
        ["--rootseal-hardening=standard", "ROOTSEAL_HARDENING=strict"],
    ),
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


DERIVED = [
    (Switch.AUTO, Rank.HARDCODED, None),
    (Switch.ON, Rank.CONFIG, "pants.toml"),
    (Switch.OFF, Rank.FLAG, None),
]
FLAGS = ("--enabled", "--fanotify")


class NativeParser:
    """Pants' parser of options from 2.24 on, as far as it is used: the words for --fanotify."""

    def __init__(self, derived: Sequence[tuple[Switch, Rank, str | None]]) -> None:
        self.derived = derived

    def with_derivation(self) -> NativeParser:
        return self

    def get_derivation(
        self,
        scope: str,
        option_info: SimpleNamespace | None = None,
        *,
        registration_args: Sequence[str] = (),
        registration_kwargs: Mapping[str, str] | None = None,
    ) -> Sequence[tuple[Switch, Rank, str | None]]:
        assert scope == "rootseal"
        assert "--fanotify" in (option_info.args if option_info else registration_args)
        return self.derived


class Options224:
    """Options of Pants 2.24: an option is registered as a pair."""

    def __init__(self, derived: Sequence[tuple[Switch, Rank, str | None]]) -> None:
        self.native_parser = NativeParser(derived)
        self.fanotify = derived[-1][0]

    def for_scope(self, scope: str) -> Options224:
        return self

    def get_parser(self, scope: str) -> Options224:
        return self

    def option_registrations_iter(self) -> Iterator[object]:
        return (((flag,), {}) for flag in FLAGS)


class Options225(Options224):
    """Options of Pants 2.25 and later: an option is registered as an object."""

    def get_registrar(self, scope: str) -> Options225:
        return self

    def option_registrations_iter(self) -> Iterator[object]:
        return (SimpleNamespace(args=(flag,), kwargs={}) for flag in FLAGS)


@pytest.mark.parametrize("options", [Options224, Options225])
def test_later_pants_tells_what_each_source_says(options: type[Options224]) -> None:
    said = said_of(options(DERIVED), "fanotify")
    assert said == [
        ("on", "[rootseal].fanotify = on (pants.toml)"),
        ("off", "--rootseal-fanotify=off"),
    ]
    assert said_of(options(DERIVED[:1]), "fanotify") == [("auto", "")]  # nobody said it


def test_a_contradiction_runs_no_action(executable: str, daemon_socket: str) -> None:
    engine = wrapping_engine(
        executable, daemon_socket, "--rootseal-hardening=strict", "--rootseal-fanotify=off"
    )
    with pytest.raises(ExecutionError) as caught:
        engine.request(FallibleProcessResult, [Process(["/bin/true"], description="nothing")])
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, ConfigError)
    assert "--rootseal-hardening=strict contradicts --rootseal-fanotify=off" in str(error)
