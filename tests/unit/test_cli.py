"""The command line: exit codes, one line per error, JSON, and never a traceback."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import core_factory as factory
import pytest
from rootseal import cli, cli_output, cli_verify, digest, keys, prove
from rootseal.errors import (
    BackendUnavailable,
    CaptureLost,
    ConfigError,
    EncodingError,
    Error,
    NativeError,
    PolicyError,
    ToolchainError,
)
from rootseal.observation import Mutation, Mutations, MutationTime

CAPTURE = keys.generate("ed25519")
RSA = """-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDOmjr0auFo+LqqsXzEkSnZDhhk
X5lpYlFU3iDIvtu2KU2ZC/N/c5pGYaqwgat6EQzzg8w1Vs2ZifY4RIts022mM9bU
ebX/18MVaTyXhxoCD7Oy6RbH8PnPvWpJmuzhEoND6gZMqU9GHGuvdLp+Vqxj83Pd
P+BLpes0NjRnv3gH9wIDAQAB
-----END PUBLIC KEY-----
"""


class Build:
    """A directory with records, a manifest, keys and a sealed bundle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        keys.create_key_files(path / "sign.key", "ed25519")
        keys.create_key_files(path / "other.key", "ecdsa-p256")
        (path / "capture.pub").write_text(CAPTURE.public_key.pem)
        (path / "app.bin").write_bytes(factory.ARTIFACT)
        records = [factory.signed_record(CAPTURE, number) for number in (1, 2, 3)]
        for record in records:
            name = digest.sha256_hex(record)
            place = path / "records" / name[:2] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(record)
        (path / "manifest.json").write_text(json.dumps(factory.manifest(records)))

    def of(self, name: str) -> str:
        return str(self.path / name)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    found = Build(tmp_path_factory.mktemp("cli"))
    arguments = ["--records", found.of("records"), "--capture-key", found.of("capture.pub")]
    assert cli.main(["seal", found.of("manifest.json"), *arguments, *_out(found)]) == 0
    return found


def _out(build: Build) -> list[str]:
    return ["--out", build.of("b.rootseal"), "--key", build.of("sign.key")]


Result = Tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def runner(*arguments: str) -> Result:
        capsys.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert len(err.splitlines()) <= 1, err
        return code, out, err

    return runner


def test_verify_says_what_it_verified(build: Build, run: Any) -> None:
    arguments = ["--key", build.of("sign.pub"), "--artifact", build.of("app.bin")]
    code, out, err = run("verify", build.of("b.rootseal"), *arguments)
    assert (code, err) == (0, "")
    assert "3 actions, 2 targets, 6 materials, 3 products" in out
    assert "posture held, losses none" in out
    assert f"{build.of('app.bin')} is app.bin" in out


def test_verify_in_json(build: Build, run: Any) -> None:
    code, out, _ = run("verify", build.of("b.rootseal"), "--key", build.of("sign.pub"), "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["posture"]) == (0, True, "held")
    assert document["captureKeyids"] == [CAPTURE.public_key.keyid]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--key", "other.pub"], 1, "refused: check 3 (root-signature)"),
        (["--key", "none.pub"], 2, "cannot read the key"),
        (["--key", "records"], 2, "is not a regular file"),
        (["--key", "app.bin"], 1, "refused: check 3 (root-signature): {app.bin} is not a PEM key"),
        (["--key", "sign.key"], 1, "check 3 (root-signature): {sign.key} holds a private key"),
        (["--key", "rsa.pub"], 1, "check 3 (root-signature): {rsa.pub} is of another kind"),
        (["--key", "cut.pub"], 1, "check 3 (root-signature): {cut.pub} is not a readable PEM"),
        (["--key", "long.pub"], 1, "check 3 (root-signature): {long.pub} is too large"),
        (["--key", "sign.pub", "--key", "app.bin"], 1, "check 3 (root-signature): {app.bin} is"),
        (
            ["--key", "sign.pub", "--capture-key", "app.bin"],
            1,
            "check 10 (record-signature): {app.bin} is not a PEM key",
        ),
        ([], 1, "refused: check 3 (root-signature): no key was given; --key PUB says who may"),
        (["--capture-key", "capture.pub"], 1, "check 3 (root-signature): no key was given"),
        (["--key", "sign.pub", "--artifact", "manifest.json"], 1, "check 5 (artifacts)"),
        (["--key", "sign.pub", "--artifact", "none"], 2, "cannot read the artifact"),
        (["--key", "sign.pub", "--require-posture", "sealed"], 1, "check 20 (policy)"),
        (["--key", "sign.pub", "--require-posture", "x"], 2, "unknown posture"),
        (["--key", "sign.pub", "--policy", "app.bin"], 2, "is not TOML"),
        (["--key", "sign.pub", "--policy", "sealed.toml"], 1, "check 20 (policy)"),
        (["--key", "sign.pub", "--policy", "odd.toml"], 2, "unknown key 'colour'"),
        (["--key", "sign.pub", "--policy", "sealed.toml", "--allow-losses"], 2, "contradicts"),
        (["--key", "sign.pub", "--capture-key", "other.pub"], 1, "check 10 (record-signature)"),
    ],
)
def test_verify_refuses_in_one_line(
    build: Build, run: Any, arguments: list[str], code: int, words: str
) -> None:
    (build.path / "sealed.toml").write_text('required_posture = "sealed"\n')
    (build.path / "odd.toml").write_text('colour = "blue"\n')
    (build.path / "rsa.pub").write_text(RSA)
    (build.path / "cut.pub").write_text(RSA.replace(RSA.splitlines()[2] + "\n", ""))
    (build.path / "long.pub").write_text(RSA * 1000)
    full = [build.of(item) if (build.path / item).exists() else item for item in arguments]
    found, out, err = run("verify", build.of("b.rootseal"), *full)
    assert (found, out) == (code, "")
    assert err.startswith("rootseal: ")
    assert code == 2 or len(err.splitlines()) == 1
    assert re.sub(r"{(.*)}", lambda name: build.of(name[1]), words) in err


def test_a_refusal_in_json_has_the_check(build: Build, run: Any) -> None:
    arguments = ["--key", build.of("other.pub"), "--json"]
    code, out, err = run("verify", build.of("b.rootseal"), *arguments)
    error: Dict[str, Any] = json.loads(out)["error"]
    assert (code, error["type"], error["check"]) == (1, "SignatureError", "ROOT_SIGNATURE")
    assert error["data"]["trusted"]
    assert err.startswith("rootseal: refused: ")


@pytest.mark.parametrize("command", ["verify", "verify-proof"])
def test_without_a_key_nothing_is_verified(build: Build, run: Any, command: str) -> None:
    words = "check 3 (root-signature): no key was given; --key PUB says who may have signed"
    for file in ("b.rootseal", "none"):
        assert run(command, build.of(file)) == (1, "", f"rootseal: refused: {words}\n")
        code, out, err = run(command, build.of(file), "--json")
        document = json.loads(out)
        assert (code, document["ok"], err) == (1, False, f"rootseal: refused: {words}\n")
        error = document["error"]
        assert (error["type"], error["check"]) == ("SignatureError", "ROOT_SIGNATURE")


@pytest.mark.parametrize("name", ["manifest.json", "sign.pub"])
def test_files_that_are_no_bundle_are_refused(build: Build, run: Any, name: str) -> None:
    code, _, err = run("verify", build.of(name), "--key", build.of("sign.pub"))
    assert code == 1
    assert "check 1 (bundle-format)" in err


def test_a_bundle_that_is_not_there_is_a_usage_error(build: Build, run: Any) -> None:
    code, _, err = run("verify", build.of("none"), "--key", build.of("sign.pub"))
    assert code == 2
    assert "cannot open the bundle" in err


def test_a_tampered_artifact_is_refused(build: Build, run: Any, tmp_path: Path) -> None:
    tampered = tmp_path / "app.bin"
    tampered.write_bytes(factory.ARTIFACT[:-1] + b"?")
    arguments = ["--key", build.of("sign.pub"), "--artifact", str(tampered)]
    code, _, err = run("verify", build.of("b.rootseal"), *arguments)
    assert code == 1
    assert "is not an artifact of this build" in err


def test_prove_and_verify_proof(build: Build, run: Any, tmp_path: Path) -> None:
    key = factory.description(2).action_key.hex()
    proof = str(tmp_path / "proof.json")
    trust = ["--key", build.of("sign.pub")]
    for what in (
        ["--artifact", build.of("app.bin")],
        ["--action", key],
        ["--action", key, "--material", "src/a.c"],
        ["--product", "out/a.o"],
        ["--absent", "/etc/shadow"],
        ["--action", key, "--absent", "src/b.c"],
    ):
        code, _, err = run("prove", build.of("b.rootseal"), *what, "--out", proof)
        assert (code, err) == (0, "")
        code, out, err = run("verify-proof", proof, *trust)
        assert (code, err) == (0, "")
        assert out.startswith("verified: ")
        code, _, err = run("verify-proof", proof, "--key", build.of("other.pub"))
        assert (code, "check 3" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "say what to prove"),
        (["--action", "0a"], 2, "whole key"),
        (["--action", "0" * 64], 1, "has no action"),
        (["--material", "nothing"], 1, "no such action has the material"),
        (["--material", "50%"], 2, "%25"),
        (["--absent", "src/a.c"], 1, "did read"),
        (["--material", "a", "--absent", "b"], 2, "not allowed with"),
    ],
)
def test_prove_refuses_in_one_line(
    build: Build, run: Any, arguments: list[str], code: int, words: str
) -> None:
    found, out, err = run("prove", build.of("b.rootseal"), *arguments)
    assert (found, out) == (code, "")
    assert words in err


def test_an_artifact_proof_is_about_one_file(build: Build, run: Any, tmp_path: Path) -> None:
    proof = str(tmp_path / "p")
    run("prove", build.of("b.rootseal"), "--artifact", build.of("app.bin"), "--out", proof)
    trust = ["--key", build.of("sign.pub")]
    assert run("verify-proof", proof, *trust, "--artifact", build.of("app.bin"))[0] == 0
    code, _, err = run("verify-proof", proof, *trust, "--artifact", build.of("sign.pub"))
    assert (code, "is not the artifact" in err) == (1, True)
    other = str(tmp_path / "q")
    run("prove", build.of("b.rootseal"), "--product", "out/a.o", "--out", other)
    assert run("verify-proof", other, *trust, "--artifact", build.of("app.bin"))[0] == 2


def test_show_lists_and_expands(build: Build, run: Any) -> None:
    code, out, _ = run("show", build.of("b.rootseal"))
    assert code == 0
    assert "NOT verified" in out
    assert out.count("action   ") == 3
    key = factory.description(2).action_key.hex()
    code, out, _ = run("show", build.of("b.rootseal"), "--action", key[:8], "--expand")
    assert "read src/a.c" in out
    assert "left out/a.o" in out
    code, out, _ = run("show", build.of("b.rootseal"), "--expand", "--json")
    document = json.loads(out)
    process = document["actions"][0]["processes"][0]
    content = factory.leaf(b"src/a.c", b"int a;").digest.hex()
    assert process["openedfiles"]["src/a.c"] == {"sha256": content}
    assert "environ" not in process, "nobody traced it"
    assert run("show", build.of("b.rootseal"), "--action", "abc")[0] == 2
    assert run("show", build.of("b.rootseal"), "--action", "f" * 64)[0] == 2


def test_show_tells_what_others_changed(run: Any, tmp_path: Path) -> None:
    changed = Mutation(b"src/a.c", b"\1" * 32, b"\2" * 32, MutationTime.ACCESS)
    unread = Mutation(b"/etc/x", b"\3" * 32, None, MutationTime.END)
    observed = dataclasses.replace(
        factory.observation(counts=factory.counters(mutatedAfterOpen=5)),
        mutations=Mutations((changed, unread), 3),
    )
    record = factory.signed_record(CAPTURE, observed=observed)
    name = digest.sha256_hex(record)
    place = tmp_path / "records" / name[:2] / name
    place.parent.mkdir(parents=True)
    place.write_bytes(record)
    policy = {**factory.manifest([record])["policy"], "requireZeroDrops": False}  # type: ignore[dict-item]
    targets = [{"address": "//app:app", "actions": [name], "artifacts": []}]
    manifest = factory.manifest([record], policy=policy, targets=targets)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "capture.pub").write_text(CAPTURE.public_key.pem)
    keys.create_key_files(tmp_path / "sign.key", "ed25519")
    arguments = ["--records", tmp_path / "records", "--capture-key", tmp_path / "capture.pub"]
    arguments += ["--key", tmp_path / "sign.key", "--out", tmp_path / "b"]
    assert run("seal", *map(str, (tmp_path / "manifest.json", *arguments)))[0] == 0
    code, out, _ = run("show", str(tmp_path / "b"))
    assert code == 0
    assert f"src/a.c sha256:{'01' * 32} at the open, sha256:{'02' * 32} when it was read" in out
    assert f"/etc/x sha256:{'03' * 32} at the open, could not be read at the end" in out
    assert "3 more, without digests" in out


def test_keygen_makes_keys_and_never_overwrites(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "k.key"
    code, out, _ = run("keygen", str(path), "--algorithm", "ecdsa-p256", "--json")
    document = json.loads(out)
    assert code == 0
    assert keys.load_public_key(document["publicKey"]).keyid == document["keyid"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, _, err = run("keygen", str(path))
    assert (code, "exists already" in err) == (2, True)
    assert run("keygen")[0] == 2
    assert run("keygen", str(path), "--default")[0] == 2
    code, _, err = run("keygen", str(tmp_path / "none" / "k.key"))
    assert (code, f"{tmp_path}/none is not a directory; make it first" in err) == (2, True)
    assert run("keygen", str(path / "k.key"))[0] == 2
    assert sorted(item.name for item in tmp_path.iterdir()) == ["k.key", "k.pub"]


def test_seal_refuses_in_one_line(build: Build, run: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "b")
    common = ["--out", out, "--key", build.of("sign.key")]
    code, _, err = run("seal", build.of("none"), "--records", build.of("records"), *common)
    assert (code, "cannot read the manifest" in err) == (2, True)
    code, _, err = run("seal", build.of("manifest.json"), "--records", build.of("none"), *common)
    assert (code, "does not exist" in err) == (2, True)
    code, _, err = run("seal", build.of("manifest.json"), "--records", build.of("records"), *common)
    assert (code, "check 10 (record-signature)" in err) == (1, True)
    empty = tmp_path / "records"
    empty.mkdir()
    code, _, err = run("seal", build.of("manifest.json"), "--records", str(empty), *common)
    assert (code, "is missing; build again" in err) == (1, True)
    assert not Path(out).exists()


def test_a_refused_seal_leaves_nothing_older(build: Build, run: Any, tmp_path: Path) -> None:
    """But a mistake of usage does: nothing was judged."""
    out, targets = tmp_path / "b", tmp_path / "targets"
    capture = ["--capture-key", build.of("capture.pub")]
    common = ["--out", str(out), "--targets", str(targets), "--key", build.of("sign.key")]
    records = ["--records", build.of("records")]
    assert run("seal", build.of("manifest.json"), *records, *common, *capture)[0] == 0
    older = [out, *sorted(targets.iterdir())]
    assert [path.name for path in older] == ["b", "app.app.intoto.json", "lib.lib.intoto.json"]
    another = targets / "another.build.intoto.json"
    another.touch()
    assert run("seal", build.of("none"), *records, *common)[0] == 2
    assert all(path.exists() for path in older)
    code, _, err = run("seal", build.of("manifest.json"), *records, *common)
    assert (code, "check 10 (record-signature)" in err) == (1, True)
    assert [path for path in (*older, another) if path.exists()] == [another]


def test_without_its_statements_a_seal_leaves_no_bundle(
    build: Build, run: Any, tmp_path: Path
) -> None:
    out, targets = tmp_path / "b", tmp_path / "targets"
    targets.write_text("in the way")
    words = ["--out", str(out), "--targets", str(targets), "--key", build.of("sign.key")]
    words += ["--records", build.of("records"), "--capture-key", build.of("capture.pub")]
    code, _, err = run("seal", build.of("manifest.json"), *words)
    assert (code, f"cannot write {targets}/app.app.intoto.json" in err) == (3, True)
    assert not out.exists()


def commands_of(parser: argparse.ArgumentParser, *words: str) -> Iterator[Tuple[str, ...]]:
    """The words of every command that does something itself."""
    groups = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
    for name, below in (pair for group in groups for pair in group.choices.items()):
        yield from commands_of(below, *words, name)
    if not groups:
        yield words


COMMANDS = {" ".join(words): words for words in commands_of(cli.build_parser())}


def test_the_commands_are_those_that_are_known() -> None:
    daemon = {f"daemon {name}" for name in ("run", "ensure", "stop", "status")}
    others = {"run", "keygen", "seal", "verify", "verify-proof", "prove", "show", "doctor"}
    assert set(COMMANDS) == {*daemon, *others, "toolchain seal", "toolchain verify"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(run: Any, command: str) -> None:
    code, out, err = run(*COMMANDS[command], "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: rootseal {command} ")
    # `daemon run` serves until it is stopped: it has no result.
    assert ("--json" in out) == (command != "daemon run")


def test_every_module_registers_the_commands_it_is_listed_with() -> None:
    for module, commands in cli.GROUPS.items():
        subparsers = argparse.ArgumentParser().add_subparsers()
        importlib.import_module(f"rootseal.{module}").register(subparsers)
        assert tuple(subparsers.choices) == commands
    modules = Path(cli.__file__).parent.glob("cli_*.py")
    registering = {path.stem for path in modules if "\ndef register(" in path.read_text("utf-8")}
    assert registering == set(cli.GROUPS)


def test_nothing_that_an_input_says_can_drive_the_terminal() -> None:
    text = cli_output.printable("a\x1b[31m\nb\x9bc\u202ed\ud800")
    assert text == "a\\u001b[31m\\u000ab\\u009bc\\u202ed\\ud800"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PolicyError("x"), 1),
        (CaptureLost("x", {"lateEvents": 1}), 1),
        (ToolchainError("x", {}), 1),
        (EncodingError("x"), 1),
        (ConfigError("x"), 2),
        (BackendUnavailable("x", "y", "z"), 2),
        (NativeError("x", 12, "y"), 3),
        (Error("x"), 3),
    ],
)
def test_exit_codes_of_errors(error: Error, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_output.report(error, as_json=True) == code
    assert json.loads(capsys.readouterr().out)["error"]["type"] == type(error).__name__


def test_an_unforeseen_fault_is_one_line_and_exit_code_3(
    build: Build, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is real: a key argument that no file function can take."""
    monkeypatch.delenv("ROOTSEAL_DEBUG", raising=False)
    code, out, err = run("verify", build.of("b.rootseal"), "--key", "nul\x00byte")
    assert (code, out) == (3, "")
    assert err.startswith("rootseal: internal error (ValueError: ")


def test_policies_may_be_made_stricter_by_flags(build: Build, run: Any) -> None:
    (build.path / "walked.toml").write_text('required_posture = "walked"\n')
    common = ["--key", build.of("sign.pub"), "--policy", build.of("walked.toml")]
    assert run("verify", build.of("b.rootseal"), *common)[0] == 0
    code, _, _ = run("verify", build.of("b.rootseal"), *common, "--require-posture", "sealed")
    assert code == 1
    (build.path / "strict.toml").write_text('required_posture = "sealed"\n')
    common[-1] = build.of("strict.toml")
    code, _, _ = run("verify", build.of("b.rootseal"), *common, "--require-posture", "walked")
    assert code == 1


def test_output_that_nobody_reads_is_no_traceback(build: Build) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "rootseal.cli", "show", build.of("b.rootseal"), "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 3


def test_a_proof_goes_to_stdout_where_no_file_is_named(
    build: Build, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cli.main(["prove", build.of("b.rootseal"), "--product", "out/a.o"]) == 0
    data = capfdbinary.readouterr().out
    assert json.loads(data)["kind"] == "product"
    assert len(data) < prove.PROOF_BYTES_MAX
    assert cli_verify.hash_artifact(build.of("app.bin")).sha256 == digest.sha256_hex(
        factory.ARTIFACT
    )


@pytest.mark.skipif(
    importlib.util.find_spec("regopy") is None, reason="optional: regopy is not installed"
)
def test_a_rego_policy_judges_the_signed_statement(build: Build, run: Any) -> None:
    recommended = Path(__file__).resolve().parents[2] / "examples" / "policy" / "recommended.rego"
    command = ["verify", build.of("b.rootseal"), "--key", build.of("sign.pub"), "--rego"]
    assert run(*command, str(recommended))[0] == 0
    (build.path / "no.rego").write_text('package p\nimport rego.v1\nallow := true\ndeny := ["n"]\n')
    code, _, err = run(*command, build.of("no.rego"))
    assert code == 1 and "check 20 (policy)" in err and "objects" in err


def test_a_rego_policy_that_is_not_there_is_refused(build: Build, run: Any) -> None:
    command = ["verify", build.of("b.rootseal"), "--key", build.of("sign.pub"), "--rego"]
    assert run(*command, build.of("gone.rego"))[0] == 2
