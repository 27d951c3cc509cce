#!/bin/busybox sh
# The VM's first process, from the initrd: makes its root out of the host's (9p, read-only) under a tmpfs, and runs one command in it.
for name in mount mkdir insmod switch_root poweroff; do /bin/busybox ln -s busybox "/bin/$name"; done
PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod "$module" || echo "VM: insmod $module failed"; done
options=trans=virtio,version=9p2000.L,msize=512000
# The tools' layer is a share of its own: overlayfs refuses a lower folder that lies within another one.
mount -t tmpfs -o size=75% tmpfs /upper && mkdir /upper/files /upper/work &&
    mount -t 9p -o "$options,cache=loose,ro" root /host &&
    mount -t 9p -o "$options,cache=loose,ro" layer /layer &&
    mount -t overlay -o lowerdir=/layer:/host,upperdir=/upper/files,workdir=/upper/work root /root ||
    { echo "VM: no root"; poweroff -f; }
mount -t tmpfs run /root/run
mkdir -p /root/mnt/out
mount -t 9p -o "$options,cache=none" out /root/mnt/out # written through: what is in it outlives the VM
for folder in dev proc sys; do mount --move "/$folder" "/root/$folder"; done
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t devpts pts /root/dev/pts
exec switch_root /root /bin/sh /mnt/out/start
