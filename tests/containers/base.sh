#!/bin/sh
# A stand-in for the images of registries, where none can be reached: Debian with HAProxy and
# RabbitMQ, as a folder. Needs root, debootstrap and Debian's mirror.
#
#   base.sh FOLDER
set -eu
folder=$1
[ ! -e "$folder/ready" ] || exit 0
rm -rf "$folder"
mkdir -p "$folder"
debootstrap --variant=minbase trixie "$folder/root" >"$folder/log" 2>&1
# Nothing is started while packages are installed.
printf '#!/bin/sh\nexit 101\n' >"$folder/root/usr/sbin/policy-rc.d"
chmod 755 "$folder/root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$folder/root/etc/resolv.conf"
DEBIAN_FRONTEND=noninteractive chroot "$folder/root" \
    apt-get install -y -qq --no-install-recommends haproxy rabbitmq-server >>"$folder/log" 2>&1
# Names that the images of registries have.
echo 'nonroot:x:65532:65532::/home/nonroot:/usr/sbin/nologin' >>"$folder/root/etc/passwd"
echo 'nonroot:x:65532:' >>"$folder/root/etc/group"
rm -rf "$folder/root/var/cache/apt" "$folder/root/var/lib/apt/lists" "$folder/root/usr/share/doc" \
    "$folder/root/usr/share/locale" "$folder/root/var/lib/rabbitmq/.erlang.cookie"
touch "$folder/ready"
