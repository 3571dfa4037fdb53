#!/bin/busybox sh
# Pid 1 on the RAM disk: a machine as systemd would have set it up, then every test program in it.
export PATH=/usr/bin:/bin TMPDIR=/tmp
b=/bin/busybox
$b --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
ip link set lo up
echo "kiln-vm: Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)"

# Where a systemd unit would be, in a group that has processes.
echo "+memory +cpu +pids" >/sys/fs/cgroup/cgroup.subtree_control
mkdir -p /sys/fs/cgroup/system.slice/kiln.service

all() {
    for test in /tests/*; do
        echo "kiln-vm: $1: $test"
        $test || return
    done
}

(
    echo 0 >/sys/fs/cgroup/system.slice/kiln.service/cgroup.procs
    all "in a unit of the machine"
)
code=$?
if [ $code = 0 ]; then
    # As in a container: the top of the hierarchy is a group with processes, and no more can be seen.
    (
        mkdir /sys/fs/cgroup/container
        echo 0 >/sys/fs/cgroup/container/cgroup.procs
        exec /usr/bin/unshare --cgroup --mount sh -c '
            umount /sys/fs/cgroup
            mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
            for test in /tests/*; do
                echo "kiln-vm: in a cgroup namespace: $test"
                $test || exit
            done'
    )
    code=$?
fi
# Groups of the tests that are left would be seen here.
find /sys/fs/cgroup -name 'kiln-*' -type d | sed 's/^/kiln-vm: left: /'
echo "kiln-vm: tests ended with $code"
poweroff -f
