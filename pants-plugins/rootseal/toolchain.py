"""Toolchain manifests: which files a build may execute, by content, signed. Pure.

A manifest is an in-toto Statement in a DSSE envelope: every file of some directories with SHA-256,
fs-verity digest where it is sealed, size and mode. `require_tools` judges an action by it: a tool
is known by its content and never by its path. docs/toolchains.md describes both.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
from typing import Dict, FrozenSet, Iterator, Mapping, Optional, Sequence, Tuple

from rootseal import __version__, canonical, envelope, leaf_table, schema, statement
from rootseal.errors import ConfigError, EncodingError, PolicyError, VerificationError
from rootseal.keys import PublicKey, Signer
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import DigestSource, LeafKind
from rootseal.statement import Subject
from rootseal.toolchain_moves import Move, brought_in, is_below

TOOLCHAIN_TYPE = "https://rootseal.dev/toolchain/v1"
FILE_COUNT_MAX = 1 << 18  # what a signed statement can hold (statement.STATEMENT_BYTES_MAX)
DIRECTORY_COUNT_MAX = 4096
TOOL_KINDS = (LeafKind.EXECUTABLE, LeafKind.CODE)
# Where a system has its programs and libraries (Filesystem Hierarchy Standard): nobody's sandbox.
SYSTEM_DIRECTORIES = tuple(
    prefix + name
    for prefix in (b"/", b"/usr/", b"/usr/local/")
    for name in (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32", b"libexec")
)

_SHAPE = schema.object_of(
    {
        "rootseal": schema.object_of({"version": schema.text(256)}),
        "directories": schema.list_of(schema.path_text, DIRECTORY_COUNT_MAX),
        "tree": schema.object_of({"root": schema.digest_text, "size": schema.integer()}),
        "files": schema.list_of(
            schema.object_of(
                {
                    "path": schema.path_text,
                    "sha256": schema.digest_text,
                    "fsverity": schema.nullable(schema.digest_text),
                    "size": schema.integer(),
                    "mode": schema.integer(leaf_table.MODE_MAX),
                }
            ),
            FILE_COUNT_MAX,
        ),
    }
)


_USED: Mapping[int, str] = {LeafKind.EXECUTABLE: "executed", LeafKind.CODE: "opened machine code"}


class ToolScope(enum.Enum):
    """Which files outside the sandbox must be in a trusted manifest."""

    EXECUTED = "executed"  # what was executed, and machine code that was opened: libraries
    ALL = "all"  # everything read


@dataclasses.dataclass(frozen=True)
class ToolFile:
    """One file of a toolchain.

    Attributes:
        path: Absolute, bytes.
        sha256: 32 bytes.
        fsverity: 32 bytes if it was sealed, else None.
        size: Bytes.
        mode: Permission bits.
    """

    path: bytes
    sha256: bytes
    fsverity: Optional[bytes]
    size: int
    mode: int

    @property
    def leaf(self) -> Leaf:
        """The leaf that stands for it in the manifest's tree."""
        source = DigestSource.WALK if self.fsverity is None else DigestSource.FSVERITY_MEASURED
        kind = LeafKind.EXECUTABLE if self.mode & 0o111 else LeafKind.FILE
        return Leaf(self.path, self.sha256, self.size, self.mode, kind, source)


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """A manifest.

    Attributes:
        directories: Absolute paths that were listed, sorted.
        files: Every regular file below them, by path.
    """

    directories: Tuple[bytes, ...]
    files: Tuple[ToolFile, ...]

    @property
    def tree(self) -> Tuple[bytes, int]:
        """RFC 6962 root and size over the files."""
        table = leaf_table.encode(Domain.MATERIAL, (file.leaf for file in self.files))
        return table.tree_root, table.tree_size


@dataclasses.dataclass(frozen=True)
class TrustedTools:
    """Contents that an action may use from outside its sandbox.

    Attributes:
        contents: SHA-256 digests.
        scope: Which files must be among them.
        manifests: How messages name the manifests.
        listed: SHA-256 and manifest of each path; only to say what is wrong.
        places: The paths of `listed`, sorted.
    """

    contents: FrozenSet[bytes]
    scope: ToolScope
    manifests: Tuple[str, ...]
    listed: Mapping[bytes, Tuple[bytes, str]] = dataclasses.field(repr=False)
    places: Tuple[bytes, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class UnknownTool:
    """A file from outside the sandbox that no manifest lists with this content.

    Attributes:
        path: Where it is.
        sha256: What it is.
        used: What the action did: `executed`, `opened machine code` or `read`.
        manifests: Those that could have listed it.
        listed: SHA-256 and manifest that lists its path, if one does: it was modified.
        moved: Whether the action had moved or linked it into its sandbox, where `path` is.
    """

    path: bytes
    sha256: bytes
    used: str
    manifests: Tuple[str, ...]
    listed: Optional[Tuple[bytes, str]]
    moved: bool = False

    def __str__(self) -> str:
        """What the action did, why that is refused, and what to do; one line without a subject."""
        text = f"{self.used} {canonical.path_text(self.path)} (sha256 {self.sha256.hex()}), which "
        if self.moved:
            text += "it moved or linked in from outside and "
        if self.listed is None:
            text += f"is in no trusted toolchain ({', '.join(self.manifests)})"
        else:
            text += f"{self.listed[1]} lists with the content {self.listed[0].hex()}"
        again = "if it belongs there, list it again with `rootseal toolchain seal`"
        return f"{text}; {again}"

    @property
    def data(self) -> Dict[str, object]:
        """The same for programs."""
        return {
            "path": canonical.path_text(self.path),
            "sha256": self.sha256.hex(),
            "used": self.used,
            "manifests": list(self.manifests),
            "listedIn": None if self.listed is None else self.listed[1],
            "listedSha256": None if self.listed is None else self.listed[0].hex(),
        }


def sign_toolchain(toolchain: Toolchain, signer: Signer) -> bytes:
    """The signed manifest: a DSSE envelope.

    Raises:
        ConfigError: No file, or too many for one manifest.
    """
    if not toolchain.files:
        raise ConfigError("these directories hold no regular file; a toolchain needs one at least")
    if len(toolchain.files) > FILE_COUNT_MAX:
        raise ConfigError(
            f"{len(toolchain.files)} files; a toolchain manifest holds {FILE_COUNT_MAX}. "
            "Seal fewer directories per manifest"
        )
    root, size = toolchain.tree
    predicate = {
        "rootseal": {"version": __version__},
        "directories": [canonical.path_text(path) for path in toolchain.directories],
        "tree": {"root": root.hex(), "size": size},
        "files": [_document(file) for file in toolchain.files],
    }
    subjects = (_subject(toolchain.directories, root),)
    try:
        return envelope.sign(statement.encode(subjects, TOOLCHAIN_TYPE, predicate), signer)
    except EncodingError as error:
        raise ConfigError(f"{error}; seal fewer directories per manifest") from None


def read_toolchain(data: bytes, trusted: Sequence[PublicKey]) -> Toolchain:
    """Read a manifest that one of the keys signed.

    Raises:
        VerificationError: Not signed by them, malformed, or it contradicts itself.
    """
    payload = envelope.verify(envelope.parse(data), trusted)
    signed = statement.parse(payload, predicate_type=TOOLCHAIN_TYPE)
    document = schema.check(signed.predicate, _SHAPE, "toolchain")
    toolchain = Toolchain(
        tuple(canonical.path_bytes(str(text)) for text in schema.as_list(document["directories"])),
        tuple(_read_file(item) for item in schema.as_list(document["files"])),
    )
    paths = [file.path for file in toolchain.files]
    if paths != sorted(set(paths)):
        raise VerificationError("toolchain: files are not in order of path, or one is there twice")
    root, size = toolchain.tree
    tree = schema.as_object(document["tree"])
    if (root.hex(), size) != (tree["root"], tree["size"]):
        raise VerificationError("toolchain: the tree is not that of its files")
    if signed.subjects != (_subject(toolchain.directories, root),):
        raise VerificationError("toolchain: the subject is not its tree")
    return toolchain


def trusted_tools(toolchains: Sequence[Tuple[str, Toolchain]], scope: ToolScope) -> TrustedTools:
    """What several manifests, each with its name for messages, allow together."""
    listed = {
        file.path: (file.sha256, name) for name, item in reversed(toolchains) for file in item.files
    }
    contents = frozenset(file.sha256 for _, item in toolchains for file in item.files)
    names = tuple(name for name, _ in toolchains)
    return TrustedTools(contents, scope, names, listed, tuple(sorted(listed)))


def find_unknown(
    materials: bytes, tools: TrustedTools, brought: FrozenSet[bytes]
) -> Optional[UnknownTool]:
    """The first file that an action used from outside its sandbox and no manifest lists.

    Args:
        materials: The action's materials table, not compressed.
        tools: What may be used.
        brought: Names in the sandbox of what the action moved or linked into it.
    """
    for leaf in leaf_table.iter_leaves(materials, Domain.MATERIAL):
        inside = not leaf.path.startswith(b"/")
        if leaf.kind == LeafKind.SYMLINK or (inside and not is_below(leaf.path, brought)):
            continue  # inside the sandbox: an input of the action, not a tool
        if tools.scope is ToolScope.EXECUTED and leaf.kind not in TOOL_KINDS:
            continue
        if leaf.digest not in tools.contents:
            used = _USED.get(leaf.kind, "read")
            found = tools.listed.get(leaf.path)
            return UnknownTool(leaf.path, leaf.digest, used, tools.manifests, found, inside)
    return None


def check_root(root: bytes, tools: TrustedTools) -> None:
    """Refuse a root that holds tools: they would be inputs of the action, and nobody's to check.

    Args:
        root: Absolute path of the action's sandbox, without symbolic links.
        tools: What may be used.

    Raises:
        ConfigError: It overlaps a directory of the system, or files of a manifest lie in it.
    """
    below = root.rstrip(b"/") + b"/"
    for directory in SYSTEM_DIRECTORIES:
        if directory.startswith(below) or below.startswith(directory + b"/"):
            raise _no_root(root, f"the system's {directory.decode()}")
    place = bisect.bisect_left(tools.places, below)
    if place < len(tools.places) and tools.places[place].startswith(below):
        path = tools.places[place]
        raise _no_root(root, f"{canonical.path_text(path)}, which {tools.listed[path][1]} lists")


def require_tools(
    materials: bytes, root: bytes, tools: TrustedTools, moves: Iterator[Move], *, about: str
) -> None:
    """Refuse an action that used a file from outside its sandbox that no manifest lists.

    Args:
        materials: The action's materials table, not compressed.
        root: Its sandbox.
        tools: What may be used.
        moves: What it renamed and hard-linked, as far as a trace tells.
        about: How the message names the action.

    Raises:
        PolicyError: Names the first such file by path and content, or says that its sandbox holds
            tools.
    """
    try:
        check_root(root, tools)
    except ConfigError as error:
        raise PolicyError(f"{about} cannot be judged: {error}") from None
    unknown = find_unknown(materials, tools, brought_in(moves, root))
    if unknown is not None:
        raise PolicyError(f"{about} {unknown}", data=unknown.data)


def _no_root(root: bytes, what: str) -> ConfigError:
    return ConfigError(
        f"the root {canonical.path_text(root)} overlaps {what}: files in the root are inputs of "
        "the action, so no toolchain could be required of them. Give a root without tools (--root)"
    )


def _subject(directories: Sequence[bytes], root: bytes) -> Subject:
    first = canonical.path_text(directories[0]) if directories else ""
    return Subject(f"toolchain:{first}", root.hex())


def _document(file: ToolFile) -> Mapping[str, object]:
    return {
        "path": canonical.path_text(file.path),
        "sha256": file.sha256.hex(),
        "fsverity": None if file.fsverity is None else file.fsverity.hex(),
        "size": file.size,
        "mode": file.mode,
    }


def _read_file(value: object) -> ToolFile:
    item: Dict[str, object] = schema.as_object(value)
    sealed = item["fsverity"]
    path = canonical.path_bytes(str(item["path"]))
    if not path.startswith(b"/"):
        raise VerificationError(f"toolchain: {item['path']!r} is not an absolute path")
    return ToolFile(
        path,
        bytes.fromhex(str(item["sha256"])),
        None if sealed is None else bytes.fromhex(str(sealed)),
        schema.as_integer(item["size"]),
        schema.as_integer(item["mode"]),
    )
