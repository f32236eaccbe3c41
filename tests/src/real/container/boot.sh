# Boots a host: makes a root directory of its own and becomes its systemd.
#
#   boot.sh ROOT NAME usr|all [share DIRECTORY | device NAME MAJOR MINOR]...
#
# Of this machine the host has its /usr, and is a fresh one otherwise (usr); or all that is installed and set up here, but for what
# is started (all). Neither is changed; only a directory that is shared is this machine's own.
#
# Runs as process 1 of new namespaces of every kind but for users, in a control group that is the root of its namespace. What
# it mounts is seen there only, and gone with the last process. A second boot with the same ROOT finds what the first one left
# there, as a host that was switched on again does.
root=$1 name=$2 beneath=$3
shift 3

# --- the disk -----------------------------------------------------------------------------------------------------------
mkdir -p "$root/disk" "$root/work" "$root/root"
case $beneath in
usr)
  cd "$root/root"
  mount --bind "$root/disk" .
  cd "$root/root"
  mkdir -p usr etc/systemd/system var run tmp proc sys dev root srv .usr/upper .usr/work
  for dir in bin sbin lib lib64; do [ -L $dir ] || ln -s usr/$dir $dir; done
  mount -t overlay -o lowerdir=/usr,upperdir=.usr/upper,workdir=.usr/work overlay usr
  ;;
all)
  mount -t overlay -o "lowerdir=/,upperdir=$root/disk,workdir=$root/work" overlay "$root/root"
  cd "$root/root"
  # What is below it here is not to be seen there.
  mount -t tmpfs tmpfs tmp
  ;;
esac
mkdir -p old
chmod 1777 tmp
if [ ! -e "$root/installed" ]; then
  # With an id it is not the first boot, at which systemd would enable whatever is in /usr.
  tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
  echo "$name" >etc/hostname
  case $beneath in
  usr)
    cp usr/share/base-passwd/passwd.master etc/passwd
    cp usr/share/base-passwd/group.master etc/group
    ;;
  all)
    # What would be mounted and started here.
    rm -rf etc/fstab etc/crypttab etc/init.d etc/rc?.d etc/systemd/system
    mkdir etc/systemd/system
    ;;
  esac
  # Of no use here, or not to be had in namespaces.
  for unit in dbus.service dbus.socket getty.target systemd-logind.service systemd-journald-audit.socket \
    dev-hugepages.mount sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount; do
    ln -s /dev/null etc/systemd/system/$unit
  done
  touch "$root/installed"
fi

# --- what the kernel shows: nothing of it that is this machine's can be changed ---------------------------------------
mount -t proc -o nosuid,nodev,noexec proc proc
for path in proc/sys proc/sysrq-trigger; do
  [ -e $path ] || continue
  mount --bind $path $path
  mount -o remount,bind,ro,nosuid,nodev,noexec $path
done
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid,noexec dev dev
character() { mknod -m "$2" "dev/$1" c "$3" "$4"; }
character null 666 1 3
character zero 666 1 5
character full 666 1 7
character random 666 1 8
character urandom 666 1 9
character tty 666 5 0
# For a test that it is out of reach where it should be.
character loop-control 666 10 237
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5,nosuid,noexec devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
disk=$(sed -n 's/^disk:[^:]*:\([0-9]*\):.*/\1/p' etc/group)
# As udev has it.
block() {
  mknod -m 660 "dev/$1" b "$2" "$3"
  chown "0:$disk" "dev/$1"
}
if [ $beneath = all ]; then
  character fuse 666 10 229
  # Which of them `mount -o loop` finds free is the kernel's to say.
  for number in $(seq 0 63); do block loop$number 7 $number; done
fi
while [ $# -gt 0 ]; do
  case $1 in
  share)
    mkdir -p ".$2"
    mount --rbind "$2" ".$2"
    shift 2
    ;;
  device)
    block "$2" "$3" "$4"
    shift 4
    ;;
  esac
done
mount -t tmpfs -o mode=755,nosuid,nodev run run

hostname "$name"
pivot_root . old
cd /
umount -l /old
# Namespaces do not keep root from loading modules, setting the clock and writing to ports of the machine: this does.
exec env -i container=afterimage-tests PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 \
  setpriv --bounding-set -sys_module,-sys_rawio,-sys_time /lib/systemd/systemd --log-target=journal
