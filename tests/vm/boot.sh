# Runs /gear/command in a small Debian, tells how it ended, and switches off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
hostname machine
ip link set lo up
modprobe -a loop fuse
cd /gear
export PYTHONPATH=/gear:/gear/src:/opt/gear
# Emulated, a process of Gear's takes ten seconds to start.
export GEAR_TEST_PATIENCE_S=240
echo "machine: Linux $(uname -r), up for $(cut -d' ' -f1 /proc/uptime) s"
sh /gear/command </dev/null 2>&1
echo "machine: status $?"
# Nothing after it: the disk goes first.
echo o >/proc/sysrq-trigger
read -r nothing </dev/console
