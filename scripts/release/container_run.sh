# Does with util-linux what a container engine does with --read-only --tmpfs /tmp --cap-drop ALL --security-opt
# no-new-privileges: only /tmp and the volumes can be written, and the process has no capabilities and the number 1.
# container_check.py calls it: ROOT USER VOLUMES BUNDLE COMMAND…, in the environment of the image.
set -euo pipefail
root=$1 user=$2 volumes=$3 bundle=$4
shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
for volume in $volumes; do
  mount -t tmpfs -o "uid=${user%:*},gid=${user#*:},mode=755" tmpfs "$root$volume"
done
mkdir -p "$root/bundle"
mount --bind "$bundle" "$root/bundle"
mount -o remount,bind,ro "$root/bundle"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@"
