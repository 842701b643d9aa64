#!/bin/sh
# Runs a command as root with a network, mounts and cgroups of its own, so that containers meet
# nothing of the machine: neither its ports nor another Podman's files.
#
#   alone.sh COMMAND ARGUMENTS…
exec unshare --mount --net sh -c '
    # Where both versions of cgroups are mounted, crun takes this one for the only one.
    [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && export ALONE=1 && exec "$@"' sh "$@"
