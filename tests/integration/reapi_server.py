"""A remote cache (Remote Execution API v2) in memory, for tests: blobs, action results, counts.

It trusts everyone, as a shared cache does, so tests poison it through its attributes.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from concurrent import futures
from pathlib import Path
from typing import Any, Iterator

import grpc
from grpc_tools import protoc

PROTOS = Path(__file__).parent / "protos"
CHUNK_BYTES = 1 << 20


def compile_protos(out: Path) -> None:
    """Compile the .proto files into `out`, and make them importable."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(str(path) for path in PROTOS.glob("*.proto"))
    code = protoc.main(
        ["protoc", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    )
    if code != 0:
        raise RuntimeError(f"protoc ended with {code}")
    if str(out) not in sys.path:
        sys.path.insert(0, str(out))


class RemoteCache:
    """The server; listens on a free port of the loopback interface.

    Attributes:
        blobs: Content by SHA-256.
        results: ActionResult by the action digest's hash.
        hits: Action results that were found.
        misses: Action results that were not.
        updates: Action results that were stored.
    """

    def __init__(self, generated: Path) -> None:
        compile_protos(generated)
        self.pb = importlib.import_module("reapi_pb2")
        self._services = importlib.import_module("reapi_pb2_grpc")
        self._stream = importlib.import_module("bytestream_pb2")
        self._stream_services = importlib.import_module("bytestream_pb2_grpc")
        self.blobs: dict[str, bytes] = {hashlib.sha256(b"").hexdigest(): b""}
        self.results: dict[str, Any] = {}
        self.hits = self.misses = self.updates = 0
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 1 << 28)]
        )
        self._services.add_ActionCacheServicer_to_server(self, self._server)
        self._services.add_ContentAddressableStorageServicer_to_server(self, self._server)
        self._services.add_CapabilitiesServicer_to_server(self, self._server)
        self._stream_services.add_ByteStreamServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop(None).wait()

    def put(self, data: bytes) -> Any:
        """Store a blob and return its Digest."""
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return self.pb.Digest(hash=name, size_bytes=len(data))

    # The services. Names are those of the protocol.

    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.pb.ServerCapabilities(
            cache_capabilities=self.pb.CacheCapabilities(
                digest_functions=[1],
                action_cache_update_capabilities=self.pb.ActionCacheUpdateCapabilities(
                    update_enabled=True
                ),
                max_batch_total_size_bytes=4_000_000,
            ),
            low_api_version=self.pb.SemVer(major=2),
            high_api_version=self.pb.SemVer(major=2, minor=1),
        )

    def GetActionResult(self, request: Any, context: Any) -> Any:  # noqa: N802
        result = self.results.get(request.action_digest.hash)
        if result is None:
            self.misses += 1
            context.abort(grpc.StatusCode.NOT_FOUND, "no such action result")
        self.hits += 1
        return result

    def UpdateActionResult(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.updates += 1
        self.results[request.action_digest.hash] = request.action_result
        return request.action_result

    def FindMissingBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        missing = [digest for digest in request.blob_digests if digest.hash not in self.blobs]
        return self.pb.FindMissingBlobsResponse(missing_blob_digests=missing)

    def BatchUpdateBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = self.pb.BatchUpdateBlobsResponse()
        for item in request.requests:
            self.put(item.data)
            response.responses.add(digest=item.digest, status=self.pb.Status(code=0))
        return response

    def BatchReadBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = self.pb.BatchReadBlobsResponse()
        for digest in request.digests:
            data = self.blobs.get(digest.hash)
            status = self.pb.Status(code=0 if data is not None else 5)
            response.responses.add(digest=digest, data=data or b"", status=status)
        return response

    def Read(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        data = self.blobs.get(request.resource_name.split("/")[-2])
        if data is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        rest = data[request.read_offset :]
        for start in range(0, max(len(rest), 1), CHUNK_BYTES):
            yield self._stream.ReadResponse(data=rest[start : start + CHUNK_BYTES])

    def Write(self, requests: Any, context: Any) -> Any:  # noqa: N802
        digest = self.put(b"".join(request.data for request in requests))
        return self._stream.WriteResponse(committed_size=digest.size_bytes)
