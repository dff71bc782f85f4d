"""A remote cache: its results bring their records, and a poisoned one is not believed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
from attested import actions_of, sha256
from pants_repo import PantsRepo
from reapi_server import RemoteCache

RECORD_FILE = ".rootseal-record"
NO_PANTSD = "--no-pantsd"
# Pants runs an action while it asks the remote cache, and takes whichever ends first. That is not
# left to chance: each command ends only where the test lets it, by these files of the gate. Another
# attempt has an option of the launcher, whose command line also has this text: hence [a].
ANY_MAY_END, RETRIES_MAY_END = "any-may-end", "retries-may-end"
COMMAND = """\
for i in {{1..3000}}; do
  [ -e {gate}/any-may-end ] && break
  [ -e {gate}/retries-may-end ] && grep -aq 'option=[a]ttempt=' /proc/$PPID/cmdline && break
  sleep 0.2
done
[ $i -lt 3000 ] || exit 99
mkdir -p more; echo {name} | tee {name}.out > more/{name}
"""


def let_end(repo: PantsRepo, *names: str) -> None:
    """From now on, actions that run end only if these files of the gate say so."""
    for name in (ANY_MAY_END, RETRIES_MAY_END):
        (gate(repo) / name).unlink(missing_ok=True)
    for name in names:
        (gate(repo) / name).touch()


def gate(repo: PantsRepo) -> Path:
    """The directory that actions look into."""
    path = repo.home / "gate"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def warmed(repo: PantsRepo, remote_cache: RemoteCache) -> PantsRepo:
    """A repository whose actions are in the remote cache, and nowhere else."""
    repo.options.update(
        {
            "PANTS_REMOTE_STORE_ADDRESS": f"grpc://127.0.0.1:{remote_cache.port}",
            "PANTS_REMOTE_CACHE_READ": "true",
            "PANTS_REMOTE_CACHE_WRITE": "true",
            # What would be given up on a busy machine is waited for.
            "PANTS_REMOTE_CACHE_RPC_TIMEOUT_MILLIS": "600000",
            "PANTS_REMOTE_STORE_RPC_TIMEOUT_MILLIS": "600000",
            "PANTS_SESSION_END_TASKS_TIMEOUT": "600",
            "PANTS_PROCESS_EXECUTION_LOCAL_PARALLELISM": "16",
        }
    )
    repo.write({"BUILD": build_file(gate(repo))})
    let_end(repo, ANY_MAY_END)
    repo.run(NO_PANTSD, "package", "::").succeeded()
    repo.verify()
    assert remote_cache.updates > len(POISONS)
    forget(repo)
    return repo


def build_file(gate: Path) -> str:
    """One command for each way to poison its result, and an archive of all."""
    commands = [
        f"""shell_command(
    name="{name}",
    command={COMMAND.format(gate=gate, name=name)!r},
    tools=["grep", "mkdir", "sleep", "tee"],
    output_files=["{name}.out"],
    output_directories=["more"],
)
"""
        for name in ("innocent", *POISONS)
    ]
    files = ", ".join(f'":{name}"' for name in ("innocent", *POISONS))
    archive = f'archive(name="everything", format="tar", files=[{files}], output_path="all.tar")\n'
    return "\n".join([*commands, archive])


def forget(repo: PantsRepo) -> None:
    """Forget everything but the remote cache."""
    shutil.rmtree(repo.home / "store")
    shutil.rmtree(repo.records)
    shutil.rmtree(repo.root / "dist")


def results_with_records(cache: RemoteCache) -> dict[str, Any]:
    """The cached results, by the content of their first output that is not the record."""
    found = {}
    for result in cache.results.values():
        names = [item.path for item in result.output_files if item.path != RECORD_FILE]
        if names:
            found[names[0]] = result
    return found


def record_of(result: Any) -> Any:
    """The output of a result that is its record."""
    (item,) = (item for item in result.output_files if item.path == RECORD_FILE)
    return item


def swap_record(cache: RemoteCache, result: Any) -> None:
    """The record of another action."""
    other = results_with_records(cache)["innocent.out"]
    record_of(result).digest.CopyFrom(record_of(other).digest)


def forge_record(cache: RemoteCache, result: Any) -> None:
    """A record that no daemon wrote."""
    record_of(result).digest.CopyFrom(cache.put(b"RSAR\x01\0\0\0" + b"\0" * 64))


def change_a_byte(cache: RemoteCache, result: Any) -> None:
    """A genuine record, but one byte."""
    record = bytearray(cache.blobs[record_of(result).digest.hash])
    record[len(record) // 2] ^= 1
    record_of(result).digest.CopyFrom(cache.put(bytes(record)))


def drop_record(cache: RemoteCache, result: Any) -> None:
    """No record at all."""
    kept = [item for item in result.output_files if item.path != RECORD_FILE]
    del result.output_files[:]
    result.output_files.extend(kept)


def change_output(cache: RemoteCache, result: Any) -> None:
    """The right record, but another output."""
    (output,) = (item for item in result.output_files if item.path == "change_output.out")
    output.digest.CopyFrom(cache.put(b"evil\n"))


def add_output(cache: RemoteCache, result: Any) -> None:
    """The right record, and a file more in an output directory."""
    (directory,) = result.output_directories
    tree = cache.pb.Tree.FromString(cache.blobs[directory.tree_digest.hash])
    tree.root.files.add(name="zzz", digest=cache.put(b"evil\n"))
    directory.tree_digest.CopyFrom(cache.put(tree.SerializeToString(deterministic=True)))


POISONS: dict[str, Callable[[RemoteCache, Any], None]] = {
    function.__name__: function
    for function in (
        swap_record,
        forge_record,
        change_a_byte,
        drop_record,
        change_output,
        add_output,
    )
}


def sources(repo: PantsRepo) -> dict[str, str]:
    """Where the result of each command of the BUILD file came from."""
    return {
        action["description"].split("//:")[1].rstrip("`"): action["source"]
        for action in repo.manifest().document["actions"]
        if "`//:" in action["description"]
    }


def check_content(repo: PantsRepo) -> None:
    """The bundle verifies, and each command's action is in it with the file that it writes."""
    repo.verify()
    products = [action.products for action in actions_of(repo)]
    for name in ("innocent", *POISONS):
        wanted = dict.fromkeys((f"{name}.out", f"more/{name}"), sha256(f"{name}\n".encode()))
        assert [made for made in products if wanted.items() <= made.items()], name


def test_remote_results_bring_their_records_and_poisoned_ones_are_run_again(
    warmed: PantsRepo, remote_cache: RemoteCache
) -> None:
    let_end(warmed)
    warmed.run(NO_PANTSD, "package", "::").succeeded()
    check_content(warmed)
    assert sources(warmed) == dict.fromkeys(("innocent", *POISONS), "remote-cache")

    forget(warmed)
    let_end(warmed, RETRIES_MAY_END)
    cached = results_with_records(remote_cache)
    for name, poison in POISONS.items():
        poison(remote_cache, cached[f"{name}.out"])
    warmed.run(NO_PANTSD, "package", "::").succeeded()
    check_content(warmed)
    assert sources(warmed) == {"innocent": "remote-cache", **dict.fromkeys(POISONS, "ran")}
    archive = (warmed.root / "dist" / "all.tar").read_bytes()
    assert b"evil" not in archive
    assert b"change_output" in archive

    # The good results are cached under another name, so the next build does not run them again.
    forget(warmed)
    let_end(warmed)
    warmed.run(NO_PANTSD, "package", "::").succeeded()
    check_content(warmed)
    assert sources(warmed) == dict.fromkeys(("innocent", *POISONS), "remote-cache")


def test_a_record_of_another_machine_counts_only_if_its_key_is_trusted(
    warmed: PantsRepo, remote_cache: RemoteCache
) -> None:
    old_key = warmed.home / "state" / "capture.pub"
    warmed.start_daemon("other-state")  # another capture key stands for another machine
    let_end(warmed, RETRIES_MAY_END)
    warmed.run(NO_PANTSD, "package", "::").succeeded()
    check_content(warmed)
    assert set(sources(warmed).values()) == {"ran"}

    forget(warmed)
    let_end(warmed)
    warmed.options["PANTS_ROOTSEAL_TRUSTED_CAPTURE_KEYS"] = f"['{old_key}']"
    warmed.run(NO_PANTSD, "package", "::").succeeded()
    check_content(warmed)
    assert set(sources(warmed).values()) == {"remote-cache"}
    assert warmed.manifest().document["captureKeys"] == [old_key.read_text("ascii")]
