#!/bin/busybox sh
# The first process of the machine: finds the root filesystem, gives it this
# kernel's modules and the code under test, and hands over to boot.sh.
/bin/busybox mkdir -p /proc /sys /dev /root /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for module in virtio_pci virtio_blk virtio_rng crc32c_generic ext4; do
    modprobe -q $module
done
tries=0
until [ -b /dev/vda ] || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
mount -t ext4 /dev/vda /root || exec poweroff -f
mkdir -p /root/usr/lib/modules /root/gear
mount -t tmpfs modules /root/usr/lib/modules
cp -a /lib/modules/. /root/usr/lib/modules
cp -a /gear/. /root/gear
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
exec switch_root /root /bin/sh /gear/tests/vm/boot.sh
