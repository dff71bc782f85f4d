#!/bin/sh
# First process of a lab guest, in its initramfs. Mounts the host's tree (9p, read-only) under an
# overlay whose writes go to a tmpfs, mounts what a system has, and gives over to lab_guest.py.
# Kernel command line: lab.python=PATH lab.runner=PATH. Whatever fails here powers the guest off
# without a result, which the host reports as a kernel that did not boot.
/bin/busybox --install -s /bin
fail() {
    echo "LAB: $*"
    /bin/busybox reboot -f
}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r name; do
    insmod "/modules/$name.ko" || echo "LAB: module $name was not loaded"
done </modules/order

for word in $(cat /proc/cmdline); do
    case $word in
    lab.python=*) python=${word#lab.python=} ;;
    lab.runner=*) runner=${word#lab.runner=} ;;
    esac
done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,$options,cache=loose host /host || fail "the host's tree did not mount"
mount -t tmpfs -o size=75% upper /lab || fail "no tmpfs"
mkdir /lab/upper /lab/work
mount -t overlay -o lowerdir=/host,upperdir=/lab/upper,workdir=/lab/work root /newroot ||
    fail "the overlay did not mount"
mkdir -p /newroot/lab/out /newroot/proc /newroot/sys /newroot/dev /newroot/run
mount -t 9p -o $options,cache=none out /newroot/lab/out || fail "the result folder did not mount"
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
mount --move /dev /newroot/dev
mkdir -p /newroot/dev/pts /newroot/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /newroot/dev/pts
mount -t tmpfs -o mode=1777 shm /newroot/dev/shm
mount -t tmpfs -o mode=755 run /newroot/run
mount -t securityfs securityfs /newroot/sys/kernel/security
mount -t tracefs tracefs /newroot/sys/kernel/tracing
mount -t bpf bpf /newroot/sys/fs/bpf
mount -t cgroup2 cgroup2 /newroot/sys/fs/cgroup
ln -sf /proc/self/fd /newroot/dev/fd
ip link set lo up
hostname lab
echo "LAB: booted $(uname -r)"
exec switch_root /newroot "$python" "$runner"
fail "the guest runner did not start"
