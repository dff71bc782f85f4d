"""Many processes, and processes that work on each other."""

from __future__ import annotations

import hashlib

SECRET = "this must not go unseen\n"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()

BOMB = """
import os, resource
resource.setrlimit(resource.RLIMIT_NPROC, (300, 300))
for depth in range(9):
    children = 0
    for _ in range(2):
        try:
            pid = os.fork()
        except BlockingIOError:  # the limit; what there is goes on
            break
        if pid == 0:
            children = 0
            break
        children += 1
    else:
        break
with open(f'out{os.getpid()}', 'w') as out:
    out.write(open('secret').read())
while children:
    os.wait()
    children -= 1
"""


def test_a_fork_bomb_within_its_limits_is_recorded_whole(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(BOMB, "--require-zero-drops")
    assert captured.code == 0, captured.stderr
    made = {path.name for path in arena.root.glob("out*")}
    assert len(made) > 250
    assert {name: captured.products()[name] for name in made} == {name: {SHA256} for name in made}
    assert captured.materials()["secret"] == {SHA256}


WORK_ON_EACH_OTHER = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # whoever may, may trace
shared, ready = os.pipe(), os.pipe()
data = ctypes.create_string_buffer(64)
pid = os.fork()
if pid == 0:
    libc.prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)
    os.write(ready[1], b'x')
    os.read(shared[0], 1)  # by now the other one has written into our memory
    open('out', 'wb').write(data.value)
    os._exit(0)
os.read(ready[0], 1)
secret = ctypes.create_string_buffer(open('secret', 'rb').read())
class Iovec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
ours = Iovec(ctypes.addressof(secret), len(secret.value))
theirs = Iovec(ctypes.addressof(data), len(secret.value))
"""
WRITE = """
n = libc.process_vm_writev(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
assert n == len(secret.value), (n, ctypes.get_errno())
"""
TRACE = """
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(16, pid, None, None) == 0, ctypes.get_errno()  # PTRACE_ATTACH
os.waitpid(pid, 0)
text = secret.value + b'\\0' * 8
for at in range(0, len(secret.value), 8):
    word = int.from_bytes(text[at:at + 8], 'little')
    assert libc.ptrace(5, pid, ctypes.addressof(data) + at, word) == 0  # PTRACE_POKEDATA
assert libc.ptrace(17, pid, None, None) == 0  # PTRACE_DETACH
"""
END = "os.write(shared[1], b'x')\nassert os.waitpid(pid, 0)[1] == 0\n"


def test_what_one_process_puts_into_another_is_recorded_where_it_was_read(arena) -> None:
    for way in (WRITE, TRACE):
        arena.write("secret", SECRET)
        captured = arena.attack(WORK_ON_EACH_OTHER + way + END, "--require-zero-drops")
        assert captured.code == 0, captured.stderr
        assert captured.materials()["secret"] == captured.products()["out"] == {SHA256}
        (arena.root / "out").unlink()


def test_a_forged_record_is_replaced_by_the_true_one(arena) -> None:
    """A descendant writes where the record will be, and stays to write again."""
    record = arena.directory / "private" / "kept"
    record.unlink(missing_ok=True)
    (arena.root / "record").write_text("")
    captured = arena.attack(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True:\n"
        "        for name in os.listdir('/tmp'):\n"
        "            if name.startswith('rootseal-run-'):\n"
        "                try: open(f'/tmp/{name}/record', 'w').write('forged')\n"
        "                except OSError: pass\n"
        "        open('tried', 'w').close(); time.sleep(0.01)\n"
        "while not os.path.exists('tried'): time.sleep(0.01)\n",
        "--descendants=kill:0",
        f"--record={record}",
    )
    assert captured.code == 0, captured.stderr
    assert captured.counter("descendantsKilled") == 1
    assert record.read_bytes().startswith(b"RSAR")
