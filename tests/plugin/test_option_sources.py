"""Every option of [rootseal] reaches the run from a flag, from pants.toml and from a variable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.process import FallibleProcessResult, Process
from pants.engine.unions import UnionMembership
from pants.option.global_options import GlobalOptions
from pants.option.option_types import collect_options_info
from pants.option.options_bootstrapper import OptionsBootstrapper
from pants.testutil.rule_runner import QueryRule, RuleRunner
from rootseal.errors import ConfigError
from rootseal_pants import hook, setup_rules, wrap_get
from rootseal_pants.demands import demands_of
from rootseal_pants.settings import Settings, resolve_settings
from rootseal_pants.subsystem import RootsealSubsystem

# Option: a value, and what becomes of it in the settings. Toolchains need their keys beside them.
VALUES: dict[str, tuple[str, Callable[[Settings], object], object]] = {
    "enabled": ("false", lambda found: found.enabled, False),
    "capture_mode": ("walk", lambda found: found.capture_mode, "walk"),
    "fanotify": ("off", lambda found: found.fanotify, "off"),
    "fsverity": ("off", lambda found: found.fsverity, "off"),
    "toolchains": ("['t.toolchain']", lambda found: found.toolchain_files[0][1], "/r/t.toolchain"),
    "toolchain_keys": ("['t.pub']", lambda found: found.toolchain_files[1][1], "/r/t.pub"),
    "toolchain_scope": (
        "all",
        lambda found: found.toolchain_arguments[0],
        "--toolchain-scope=all",
    ),
    "hardening": ("strict", lambda found: found.hardening, "strict"),
    "require_zero_drops": ("true", lambda found: found.require_zero_drops, True),
    "key": ("keys/a.key", lambda found: found.key, "/r/keys/a.key"),
    "public_key": ("keys/a.pub", lambda found: found.public_key, "/r/keys/a.pub"),
    "executable": ("bin/rootseal", lambda found: found.executable, "bin/rootseal"),
    "out": ("seals/here", lambda found: found.out_dir, "/r/dist/seals/here"),
    "trusted_capture_keys": (
        "['a.pub', '/b.pub']",
        lambda found: found.trusted_capture_keys,
        ("/r/a.pub", "/b.pub"),
    ),
    "descendants": ("wait", lambda found: "--descendants=wait" in found.launcher_arguments, True),
    **{
        name: ("4096", lambda found, word=f"{name}=4096": says(found, word), True)
        for name in ("max_digests", "max_record_bytes", "max_hashed_bytes")
    },
    "trace_ring": ("1M", lambda found: found.trace_ring_bytes, 1 << 20),
    "records_dir": ("kept/here", lambda found: found.records_dir, "/r/kept/here"),
    "records_max_bytes": ("4096", lambda found: found.records_max_bytes, 4096),
    "daemon_socket": ("/run/x.sock", lambda found: found.daemon_socket, "/run/x.sock"),
}
BESIDE = {
    "toolchains": {"toolchain_keys": "['t.pub']"},
    "toolchain_keys": {"toolchains": "['t.toolchain']"},
    "toolchain_scope": {"toolchain_keys": "['t.pub']", "toolchains": "['t.toolchain']"},
}


def says(settings: Settings, option: str) -> bool:
    return f"--option={option.replace('_', '-')}" in settings.launcher_arguments


def flags_of(values: dict[str, str]) -> list[str]:
    return [f"--rootseal-{name.replace('_', '-')}={value}" for name, value in values.items()]


def variables_of(values: dict[str, str]) -> dict[str, str]:
    return {f"PANTS_ROOTSEAL_{name.upper()}": value for name, value in values.items()}


def toml_of(values: dict[str, str]) -> str:
    plain = ("[", "true", "false", "4096")
    lines = (f"{name} = {v if v.startswith(plain) else repr(v)}" for name, v in values.items())
    return "\n".join(["[rootseal]", *lines, ""])


def read(config: Path, *, toml: str = "", flags: Any = (), variables: Any = None) -> Settings:
    """The settings of a run at the build root /r."""
    config.write_text(toml)
    options = OptionsBootstrapper.create(
        args=["pants", f"--pants-config-files=['{config}']", *flags],
        env=variables or {},
        allow_pantsrc=False,
    ).full_options_for_scopes(
        [GlobalOptions.get_scope_info(), RootsealSubsystem.get_scope_info()], UnionMembership({})
    )
    found: Any = options.for_scope("rootseal")
    return resolve_settings(
        found,
        demands=demands_of(options, {}),
        workdir="/w",
        build_root="/r",
        dist_dir="dist",
        sandboxes="/s",
    )


def test_no_option_is_left_out() -> None:
    names = {
        info.flag_names[0][2:].replace("-", "_") for info in collect_options_info(RootsealSubsystem)
    }
    assert set(VALUES) == names


@pytest.mark.parametrize("name", sorted(VALUES))
def test_each_source_is_heard(name: str, tmp_path: Path) -> None:
    config = tmp_path / "pants.toml"
    value, of, expected = VALUES[name]
    given, beside = {name: value, **BESIDE.get(name, {})}, BESIDE.get(name, {})
    without = read(config, flags=flags_of(beside)) if name == "toolchain_scope" else read(config)
    said = [
        read(config, flags=flags_of(given)),
        read(config, toml=toml_of(given)),
        read(config, variables=variables_of(given)),
    ]
    assert [of(settings) for settings in said] == [expected] * 3
    assert said[0] == said[1] == said[2] != without


def test_a_value_that_no_run_could_use_starts_nothing(tmp_path: Path) -> None:
    hook.install(wrap_get)
    queries = [QueryRule(FallibleProcessResult, [Process])]
    runner = RuleRunner(rules=[*setup_rules.rules(), *wrap_get.rules(), *queries])
    missing = tmp_path / "none"
    runner.set_options([f"--rootseal-executable={missing}", "--rootseal-max-digests=0"])
    with pytest.raises(ExecutionError) as caught:
        runner.request(FallibleProcessResult, [Process(["/bin/true"], description="nothing")])
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, ConfigError)
    assert str(error).startswith("[rootseal].max_digests must be from 1 to ")
