#!/bin/sh
# Runs a command as root with processes, a network, mounts and cgroups of its own, so that
# containers meet nothing of the machine, neither its ports nor another Podman's files, and none
# outlives the command.
#
#   alone.sh COMMAND ARGUMENTS…
exec unshare --mount --net --pid --fork --kill-child --mount-proc sh -c '
    # Where both versions of cgroups are mounted, crun takes this one for the only one.
    [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && ip link set lo up || exit
    # Not by exec: the first process must collect orphans, which node does not.
    ALONE=1 "$@"' sh "$@"
