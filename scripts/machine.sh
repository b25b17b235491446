# shellcheck shell=bash
# A virtual machine: QEMU without KVM, Debian's cloud kernel, cgroup v2 alone. To be sourced, after lib.sh.
# Its architecture is $arch, amd64 or arm64.

arch=amd64

# In the order in which the kernel takes them.
modules=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk overlay)

need_machine() {
    [ "$(uname -m)" = x86_64 ] || fail "this starts from an x86-64 machine, which this is not"
    need_root
    need_packages 'mmdebstrap=command -v mmdebstrap' 'cpio=command -v cpio' 'e2fsprogs=command -v mke2fs'
    case "$arch" in
    amd64)
        need_packages 'qemu-system-x86=command -v qemu-system-x86_64'
        emulator=(qemu-system-x86_64 -cpu max)
        ;;
    arm64)
        need_packages 'qemu-system-arm=command -v qemu-system-aarch64'
        emulator=(qemu-system-aarch64 -M virt -cpu neoverse-n1)
        ;;
    *) fail "--arch $arch: there is amd64 and arm64" ;;
    esac
}

# once PATH COMMAND...: has COMMAND make PATH under another name, which becomes this one when it is done.
once() {
    local path=$1
    shift
    [ -e "$path" ] && return
    say "making $path"
    as_root rm -rf "$path.new"
    mkdir -p "$(dirname "$path")"
    "$@" "$path.new" || fail "$path cannot be made: is the network there?"
    as_root mv "$path.new" "$path"
}

# The kernel of the suite that the directory is called after (for arm64 with -arm64 behind it), its modules that are needed,
# and busybox, in a directory.
make_kernel() {
    local tree=$1.tree suite module file
    suite=$(basename "$1" .new)
    suite=${suite%-arm64}
    mkdir -p "$1/initramfs/modules"
    as_root rm -rf "$tree"
    as_root mmdebstrap --quiet --mode=root --variant=extract --format=directory "--architectures=$arch" \
        "--include=linux-image-cloud-$arch,busybox-static" "$suite" "$tree"
    cp "$tree"/boot/vmlinuz-* "$1/vmlinuz"
    install -m 755 "$tree/$(cd "$tree" && find . -path '*bin/busybox' | head -n 1)" "$1/initramfs/busybox"
    for module in "${modules[@]}"; do
        file=$(find "$tree" -name "$module.ko*" | head -n 1)
        # What is not there is built in.
        case "$file" in
        *.xz) xz -dc "$file" >"$1/initramfs/modules/$module.ko" ;;
        *.ko) cp "$file" "$1/initramfs/modules/$module.ko" ;;
        esac
    done
    initramfs_init >"$1/initramfs/init"
    chmod 755 "$1/initramfs/init"
    (cd "$1/initramfs" && find . | cpio --quiet -o -H newc) | gzip -1 >"$1/initramfs.gz"
    as_root rm -rf "$tree"
}

# The first program of the machine: finds its disks, and hands over to .vm/init on the second.
initramfs_init() {
    cat <<INIT
#!/busybox sh
/busybox mkdir -p /proc /dev /root
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
for module in ${modules[*]}; do
    test ! -e /modules/\$module.ko || /busybox insmod /modules/\$module.ko
done
/busybox mount -t ext4 /dev/vda /root
project=\$(/busybox sed 's/.*project=\([^ ]*\).*/\1/' /proc/cmdline)
/busybox mkdir -p /root\$project
/busybox mount -t ext4 /dev/vdb /root\$project
/busybox mount --move /dev /root/dev
/busybox cp /busybox /root/busybox
exec /busybox switch_root /root /bin/bash \$project/.vm/init
INIT
}

# boot KERNEL SYSTEM DIRECTORY SECONDS: boots the disk SYSTEM with the disk DIRECTORY/project.img, of which nothing that is
# written is kept. What the machine writes to ttyS0 is on standard output, to ttyS1 (the console) and ttyS2 in DIRECTORY.
boot() {
    local serial=(-serial stdio -serial "file:$3/console" -serial "file:$3/status")
    # The machine's own serial line is another kind of device there.
    [ "$arch" = amd64 ] || serial=(-chardev stdio,id=out -device pci-serial,chardev=out
        -chardev "file,id=console,path=$3/console" -device pci-serial,chardev=console
        -chardev "file,id=status,path=$3/status" -device pci-serial,chardev=status)
    local try
    for try in 1 2 3; do
        : >"$3/status"
        run_emulator "$@" || true
        # The emulation, not what runs in it: it does not always survive that the kernel changes its own code on one processor while
        # another one is at it.
        [ ! -s "$3/status" ] && grep -qa 'Kernel panic' "$3/console" && [ "$try" -lt 3 ] || return 0
        tail -n 60 "$3/console" >&2
        say "THE EMULATED KERNEL PANICKED (above): the machine is started once more"
    done
}

# run_emulator KERNEL SYSTEM DIRECTORY SECONDS: once; `serial` is the caller's.
run_emulator() {
    timeout --foreground "$4" "${emulator[@]}" -accel tcg,thread=multi -smp 2 -m 3072 -nodefaults -no-reboot \
        -display none -kernel "target/vm/$1/vmlinuz" -initrd "target/vm/$1/initramfs.gz" \
        -append "console=ttyS1 loglevel=4 panic=-1 mitigations=off cgroup_no_v1=all project=$PWD" \
        -drive "file=$2,format=raw,if=virtio,snapshot=on" \
        -drive "file=$3/project.img,format=raw,if=virtio,snapshot=on" \
        "${serial[@]}" </dev/null
}

# finished DIRECTORY SECONDS: ends with the status that the machine wrote to ttyS2.
finished() {
    local status
    status=$(tr -dc '0-9' <"$1/status")
    [ -n "$status" ] || {
        tail -n 50 "$1/console" >&2
        fail "the machine did not come to the command's end (in $2 s at most); its console is above"
    }
    exit "$status"
}
