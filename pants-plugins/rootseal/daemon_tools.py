"""The toolchains that an action requires: read before it starts, judged before it is signed.

    ToolDemand (paths) → read with the client's rights → TrustedTools → materials → ToolchainError

The manifests are held from before the action starts, so nothing that it does can change them.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import Dict, List, Optional, Sequence, Tuple

from rootseal import digest, envelope, keys, toolchain
from rootseal.daemon_announce import ToolDemand
from rootseal.daemon_peer import Peer, as_user
from rootseal.errors import ConfigError, PostureError, ToolchainError, VerificationError
from rootseal.observation import Observation, Posture
from rootseal.toolchain import TrustedTools
from rootseal.toolchain_moves import brought_in, moves_seen

SETS_MAX = 4  # sets of manifests kept parsed: a build has one, and a manifest may fill 100 MB
KEY_BYTES_MAX = 64 * 1024
MANIFESTS_BYTES_MAX = 4 * envelope.ENVELOPE_BYTES_MAX  # of one action together: a client says which

_File = Tuple[str, bytes]  # path for messages, content


class ToolCache:
    """Manifests in their parsed form, by content: the many actions of a build require the same."""

    def __init__(self) -> None:
        """Empty."""
        self._known: Dict[bytes, TrustedTools] = {}
        self._lock = threading.Lock()

    def load(self, demand: ToolDemand, peer: Peer) -> Optional[TrustedTools]:
        """What an action may use; None if nothing is required.

        Raises:
            ConfigError: A manifest or key cannot be read by the client, or is not genuine.
        """
        if not demand.manifests:
            return None
        with as_user(peer):
            most = (envelope.ENVELOPE_BYTES_MAX, MANIFESTS_BYTES_MAX)
            manifests = _read_all(demand.manifests, *most)
            signers = _read_all(demand.keys, KEY_BYTES_MAX, MANIFESTS_BYTES_MAX)
        name = _name_of(demand, manifests, signers)
        with self._lock:  # who wants the same waits: parsing it twice at once would be slower
            found = self._known.pop(name, None) or _parse(demand, manifests, signers)
            self._known[name] = found
            while len(self._known) > SETS_MAX:
                del self._known[next(iter(self._known))]
        return found


def require_sight(posture: Posture) -> None:
    """Refuse a toolchain for a capture that sees no execution: it could not show another tool.

    Raises:
        PostureError: It does not.
    """
    if posture.rank < Posture.OBSERVED.rank:
        raise PostureError(
            f"posture {posture.value} does not see what is executed, so no toolchain can be "
            "required. Run `rootseal doctor`.",
            Posture.OBSERVED.value,
            posture.value,
        )


def judge_tools(observation: Observation, tools: Optional[TrustedTools], root: bytes) -> None:
    """Fail an action that used a file from outside its sandbox that no manifest lists.

    Raises:
        ToolchainError: Names the file and the manifests.
        PostureError: The capture did not see what was executed.
    """
    if tools is None:
        return
    require_sight(observation.posture)
    brought = brought_in(moves_seen(observation.processes), root)
    unknown = toolchain.find_unknown(observation.materials.raw, tools, brought)
    if unknown is not None:
        raise ToolchainError(f"the action {unknown}", unknown.data)


def _read_all(paths: Sequence[bytes], bytes_max: int, total_max: int) -> List[_File]:
    """Files of at most `bytes_max` each and `total_max` together."""
    found: List[_File] = []
    for path in paths:
        found.append((os.fsdecode(path), _read(path, bytes_max)))
        total_max -= len(found[-1][1])
        if total_max < 0:
            raise ConfigError("the toolchain manifests are too large together; require fewer")
    return found


def _read(path: bytes, bytes_max: int) -> bytes:
    """A regular file; nothing that could keep the daemon waiting."""
    name = os.fsdecode(path)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"{name} is no regular file; name a toolchain manifest or key")
            data = stream.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {name} for the toolchain: {error.strerror}") from None
    if len(data) > bytes_max:
        raise ConfigError(f"{name} is larger than {bytes_max} bytes; it is no toolchain file")
    return data


def _name_of(demand: ToolDemand, manifests: Sequence[_File], signers: Sequence[_File]) -> bytes:
    parts = [demand.scope.value.encode(), str(len(manifests)).encode()]
    for path, data in (*manifests, *signers):
        parts += [digest.sha256(os.fsencode(path)), digest.sha256(data)]
    return b"\0".join(parts)


def _parse(
    demand: ToolDemand, manifests: Sequence[_File], signers: Sequence[_File]
) -> TrustedTools:
    trusted = tuple(keys.parse_public_key(data, where=path) for path, data in signers)
    loaded = []
    for path, data in manifests:
        try:
            loaded.append((path, toolchain.read_toolchain(data, trusted)))
        except VerificationError as error:
            raise ConfigError(f"the toolchain manifest {path} is not accepted: {error}") from None
    return toolchain.trusted_tools(loaded, demand.scope)
