# Shared by prepare and vm: where things are. Sourced, never run.

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
# LOCKSTEP_LAB points several work trees at one cache.
lab=${LOCKSTEP_LAB:-$repo/.lab}

die() {
    echo "$(basename "$0"): $*" >&2
    exit 125
}

# Modules that the initramfs loads before it has a root file system.
boot_modules="virtio_pci virtio_blk 9pnet_virtio 9p overlay"

# The release string of an unpacked kernel: the name of its only modules folder.
kernel_release() {
    basename "$(ls -d "$1"/usr/lib/modules/* 2>/dev/null | head -n 1)" 2>/dev/null
}
