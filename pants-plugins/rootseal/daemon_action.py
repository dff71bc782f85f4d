"""The life of one action, from ANNOUNCE to RECORD (docs/protocol.md).

    ANNOUNCE → decision → place in the line → PREPARED → READY → scope → ARMED → (the action runs)
    → EXITED → observation → gate → signature → RECORD

Whatever goes wrong on the way ends the scope, and nothing is signed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import select
import time
from typing import Any, Callable, Dict, Optional, Set, Tuple

from rootseal import __version__, canonical, diagnostics, digest, leaf_table, record, toolchain
from rootseal.capture.ptrace import TracedByLauncher, mode_text
from rootseal.capture.scope import Scope
from rootseal.daemon_announce import Announcement, Decision, decide, read_announcement
from rootseal.daemon_backends import Backends, open_ima
from rootseal.daemon_connection import FRAME_SECONDS, Connection
from rootseal.daemon_peer import (
    Peer,
    as_user,
    check_child,
    check_root,
    opened_namespace,
    opened_process,
)
from rootseal.daemon_removal import hinders_removal
from rootseal.daemon_seal import require_fsverity, seal_outputs
from rootseal.daemon_tools import ToolCache, judge_tools, require_sight
from rootseal.errors import (
    CaptureError,
    EncodingError,
    KeyExposedError,
    PostureError,
    ZeroDropsError,
)
from rootseal.keys import Signer
from rootseal.leaf_table import Domain
from rootseal.observation import MountMark, Observation, Posture
from rootseal.predicate import ActionDescription, Fallback, Host, exit_of_wait_status
from rootseal.wire import Frame, FrameType, Tag

_KEY_REMEDY = (
    "Let it not, remove the key (a new daemon makes another), and capture with the system daemon "
    "and the helper, whose key no user's action can read: sudo rootseal daemon run."
)


@dataclasses.dataclass(frozen=True)
class Exited:
    """How the action ended, as its launcher says.

    Attributes:
        wait_status: As wait(2) has it.
        descendants_killed: After its own process had ended.
        escapes: Calls that made or entered a mount namespace, or took a descriptor from elsewhere.
        mounts: Calls that made a mount.
        unseen: Files that the action was given open and that could not be shown to the capture.
    """

    wait_status: int
    descendants_killed: int
    escapes: int
    mounts: int
    unseen: int


def run_action(
    connection: Connection,
    announce: Frame,
    *,
    backends: Backends,
    signer: Signer,
    key_sha256: bytes,
    known_tools: ToolCache,
    user: Optional[int],
) -> record.SignedRecord:
    """Capture one action and send its signed record.

    Args:
        connection: Of the launcher.
        announce: The frame that it sent.
        backends: What this daemon captures with.
        signer: The capture key.
        key_sha256: Of the file that holds it.
        known_tools: Toolchain manifests that other actions required.
        user: Who must leave places to other users, or None.

    Returns:
        The record that was sent.

    Raises:
        Error: Why there is no record; the connection's owner tells the launcher.
        EOFError: The launcher is gone.
        OSError: Its connection broke.
    """
    announced = read_announcement(announce)
    check_root(announced.root, connection.peer)
    removal = hinders_removal(announced.root, connection.peer)
    missing = dataclasses.replace(backends.missing_for(announced), removal=removal)
    decision = decide(announced, missing)
    require_fsverity(announced, connection.peer)
    with connection.pulse(b"reading the toolchains"):
        tools = known_tools.load(announced.tools, connection.peer)
    if tools is not None and decision.backend in ("walk", "ima"):
        require_sight(Posture.WALKED)  # before the action has run in vain
    if tools is not None:
        toolchain.check_root(announced.root, tools)
    with contextlib.ExitStack() as stack:
        with connection.pulse(b"waiting for a free place"):
            stack.enter_context(backends.place(user))
        connection.send(Frame(FrameType.PREPARED, ((Tag.MODE, _mode(announced, decision)),)))
        described = describe(announced, decision)  # while the launcher makes its child
        with contextlib.ExitStack() as running:
            scope = _open_scope(connection, announced, decision, backends, running)
            stack.callback(scope.abort)
            started_at = now_text()
            connection.send(Frame(FrameType.ARMED))
            running.enter_context(backends.watched(scope, connection.peer.pid))
            exited = _wait_exited(connection, scope)
        with connection.pulse(b"finishing the capture"), backends.working():
            observation = _finish(scope, announced, decision, connection.peer)
            observation = with_guard_counts(observation, exited)
            gate(announced, observation)
            refuse_exposed_key(observation, key_sha256)
            judge_tools(observation, tools, announced.root)
            observation = seal_outputs(observation, announced, connection.peer)
            steps = (*decision.fallbacks, *served_by_others(observation, announced.root))
            description = described(**_ending(exited), started_at=started_at, fallbacks=steps)
            signed = record.sign_record(observation, description, signer)
        connection.send(Frame(FrameType.RECORD, ((Tag.RECORD, signed.data),)))
    return signed


def _open_scope(
    connection: Connection,
    announced: Announcement,
    decision: Decision,
    backends: Backends,
    running: contextlib.ExitStack,
) -> Scope:
    """Wait for READY and open the scope for the process that sent it, which blocks until ARMED.

    `running` is left when the action has ended.
    """
    deadline = time.monotonic() + FRAME_SECONDS
    kind, sender = connection.receive_ready(deadline)
    if kind != FrameType.READY:
        raise EncodingError(f"expected READY, not {kind.name}")
    private = decision.backend == "fanotify"
    check_child(sender, connection.peer, private_namespace=private)
    with (
        opened_process(sender.pid, "the action's process") as process,
        connection.pulse(b"arming the capture"),
    ):
        scope: Scope
        if private:
            scope = _open_fanotify(connection, announced, decision, backends, sender.pid, process)
        elif decision.backend == "ptrace":
            with as_user(connection.peer):
                scope = backends.open_ptrace(announced)
        elif decision.backend == "ebpf":
            with backends.working():
                scope = backends.open_ebpf(sender.pid, announced, as_user(connection.peer))
        else:
            with backends.working(), as_user(connection.peer):
                scope = backends.open_walk(announced)
            if decision.backend == "ima":
                scope = open_ima(scope, announced)
        try:
            if private:
                namespace = running.enter_context(opened_namespace(sender.pid))
                running.enter_context(backends.kept(scope, connection.peer.pid, namespace))
            elif decision.backend == "ebpf":
                running.enter_context(backends.follower.following(connection.peer.pid, scope))
            if _has_ended(process):
                raise CaptureError("the action's process ended before it was armed")
        except BaseException:
            scope.abort()
            raise
    return scope


def _open_fanotify(
    connection: Connection,
    announced: Announcement,
    decision: Decision,
    backends: Backends,
    pid: int,
    process: int,
) -> Scope:
    """The scope of a process with this pidfd; waits while no group is free."""

    def pause(seconds: float) -> None:
        if _has_ended(process) or connection.is_gone():
            raise CaptureError("the action ended before a fanotify group was free")
        with connection.pulse(b"waiting for a fanotify group"):
            time.sleep(seconds)

    return backends.open_fanotify(pid, announced, traced=decision.traced, pause=pause)


def _has_ended(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def _mode(announced: Announcement, decision: Decision) -> bytes:
    if decision.traced == "ptrace":
        return b"fanotify+" + mode_text(announced.limits).encode("ascii")
    if decision.backend == "ptrace":
        return mode_text(announced.limits).encode("ascii")
    if decision.backend in ("ima", "ebpf"):
        return b"walk"  # the same to the launcher: nothing of it takes part
    return decision.backend.encode("ascii")


def _wait_exited(connection: Connection, scope: Scope) -> Exited:
    """Wait for EXITED without a time limit. EOF: the launcher was killed or gave up.

    What the launcher traces meanwhile goes to the scope.
    """
    frame = connection.receive(None)
    while frame.type == FrameType.TRACE and isinstance(scope, TracedByLauncher):
        scope.feed(frame.one(Tag.EVENTS))
        frame = connection.receive(None)
    if frame.type != FrameType.EXITED:
        raise EncodingError(f"expected EXITED, not {frame.type.name}")
    status = frame.one(Tag.WAIT_STATUS)
    if len(status) != 4:
        raise EncodingError("EXITED holds a wait status of another size")
    tags = (Tag.COUNT, Tag.ESCAPES, Tag.MOUNTS, Tag.UNSEEN)
    return Exited(int.from_bytes(status, "big"), *(_count(frame.one(tag)) for tag in tags))


def _count(value: bytes) -> int:
    if len(value) != 8:
        raise EncodingError("EXITED holds a count of another size")
    return min(int.from_bytes(value, "big"), diagnostics.COUNTER_VALUE_MAX)


def with_guard_counts(observation: Observation, exited: Exited) -> Observation:
    """Add what the launcher's guard counted: calls that lead away from the marked mounts."""
    if not (exited.escapes or exited.mounts or exited.unseen):
        return observation
    guarded = {
        "namespaceEscapes": exited.escapes,
        "unmarkedMounts": exited.mounts,
        "unhashedOpensTotal": exited.unseen,
    }
    counters = diagnostics.add(observation.counters, {**diagnostics.zeros(), **guarded})
    return dataclasses.replace(observation, counters=counters)


def _finish(scope: Scope, announced: Announcement, decision: Decision, peer: Peer) -> Observation:
    """End the scope. Python reads with the client's rights, the C cores check by themselves."""
    outputs = {
        "outputs_files": announced.output_files,
        "outputs_dirs": announced.output_dirs,
    }
    if decision.backend == "fanotify":
        return scope.finish(**outputs)
    with as_user(peer):
        return scope.finish(**outputs)


def gate(announced: Announcement, observation: Observation) -> None:
    """Refuse to sign what the caller would not accept.

    Raises:
        ZeroDropsError: A gating counter is not zero, and zero drops are required.
        PostureError: The openers were not held, and that was required.
    """
    requested = announced.requested
    must_hold = announced.strict or requested.fanotify == "on"
    if must_hold and observation.posture.rank < Posture.HELD.rank:
        achieved = observation.posture.value
        raise PostureError(
            f"the capture reached posture {achieved}, held was required. Run `rootseal doctor`.",
            Posture.HELD.value,
            achieved,
        )
    losses = diagnostics.losses(observation.counters) if requested.require_zero_drops else {}
    if losses:
        text = ", ".join(f"{name} {value}" for name, value in sorted(losses.items()))
        remedy = diagnostics.BY_NAME[sorted(losses)[0]].remedy
        raise ZeroDropsError(f"{diagnostics.LOST}: {text}. {remedy}", losses)


def refuse_exposed_key(observation: Observation, key_sha256: bytes) -> None:
    """Fail an action that read the capture key: what it signs may be forged.

    A walk does not tell what was read.

    Raises:
        KeyExposedError: Names the path and what to do.
    """
    table = observation.materials.raw
    if observation.posture.rank < Posture.OBSERVED.rank or key_sha256 not in table:
        return
    for leaf in leaf_table.iter_leaves(table, Domain.MATERIAL):
        if leaf.digest == key_sha256:
            raise KeyExposedError(canonical.path_text(leaf.path), _KEY_REMEDY)


def describe(announced: Announcement, decision: Decision) -> Callable[..., ActionDescription]:
    """What is known of an action before it starts: all but when it ran and how it ended."""
    return functools.partial(
        ActionDescription,
        action_key=announced.action_key,
        cmd=announced.argv,
        environ=tuple((name, digest.sha256(value)) for name, value in announced.environ),
        root=announced.root,
        working_directory=_below(announced.root, announced.cwd),
        requested=announced.requested,
        requested_posture=decision.requested_posture,
        fallbacks=decision.fallbacks,
        host=_host(),
        output_files=announced.output_files,
        output_directories=announced.output_dirs,
    )


def served_by_others(observation: Observation, root: bytes) -> Tuple[Fallback, ...]:
    """The step down to `observed` that files of FUSE, NFS and the like are, if there were any."""
    if observation.posture is not Posture.OBSERVED or observation.backend == "ebpf":
        return ()
    weaker = {mount.filesystem for mount in observation.mounts if _is_weaker(mount)}
    if len(weaker) > 1:
        weaker = _weaker_used(observation, root) or weaker
    names = ", ".join(sorted(weaker))[:256] or "not named"
    reason = f"it used files that others serve ({names}): content can change after it was hashed"
    return (Fallback(Posture.HELD.value, observation.posture.value, reason),)


def _is_weaker(mount: MountMark) -> bool:
    return mount.posture is Posture.OBSERVED


def _weaker_used(observation: Observation, root: bytes) -> Set[str]:
    """Types of those weaker mounts that a material is on."""
    mounts = {mount.mount_point: mount for mount in observation.mounts if mount.marked}
    known: Dict[bytes, Optional[MountMark]] = {b"/": None, **mounts}
    used = set()
    for leaf in leaf_table.iter_leaves(observation.materials.raw, Domain.MATERIAL):
        place = os.path.join(root, leaf.path)
        passed = []
        while place not in known:
            place = os.path.dirname(place)
            passed.append(place)
        mount = known[place]
        known.update(dict.fromkeys(passed, mount))  # directories, and there are fewer of them
        if mount is not None and _is_weaker(mount):
            used.add(mount.filesystem)
    return used


def _ending(exited: Exited) -> Dict[str, Any]:
    exit_code, signal = exit_of_wait_status(exited.wait_status)
    return {
        "exit_code": exit_code,
        "signal": signal,
        "finished_at": now_text(),
        "descendants_killed": exited.descendants_killed,
    }


def now_text() -> str:
    """The time, RFC 3339 in UTC with microseconds."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _below(root: bytes, path: bytes) -> bytes:
    """`path` relative to the root, or as it is where it lies outside."""
    if path == root:
        return b"."
    relative = os.path.relpath(path, root)
    return path if relative == b".." or relative.startswith(b"../") else relative


@functools.lru_cache(maxsize=1)
def _host() -> Host:
    system = os.uname()
    return Host(system.release, system.machine, __version__)
