#!/bin/busybox sh
# Pid 1 in the initramfs: puts everything on a RAM disk with ext4 and goes on there.
b=/bin/busybox
fail() {
    echo "kiln-vm: $*"
    $b poweroff -f
}
$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    case $module in
    *-brd.ko) options="rd_nr=1 rd_size=786432" ;;
    *) options= ;;
    esac
    $b insmod $module $options || fail "$module can't be loaded"
done
$b mke2fs /dev/ram0 >/dev/null || fail "no file system on the RAM disk"
$b mount -t ext4 /dev/ram0 /root || fail "the RAM disk can't be mounted"
$b cp -a /bin /lib /lib64 /usr /tests /run-tests /root || fail "the RAM disk is too small"
$b mkdir -p /root/proc /root/sys /root/dev /root/tmp /root/run
$b umount /proc
$b mount --move /dev /root/dev
exec $b switch_root /root /run-tests
