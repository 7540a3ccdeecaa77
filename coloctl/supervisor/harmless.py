"""List what may stay readable on a command line that others will read; pure.

`supervisor.redact` looks up the name of each option of QEMU, and of each parameter of a kernel.

Invariant: a name that is not on these lists hides its value; a list of secrets is never complete.
"""

from __future__ import annotations

#: QEMU's options whose value is a list of key=value or a JSON object.
_LISTS = """
object device chardev netdev blockdev drive machine M accel cpu m smp name msg action boot rtc
overcommit sandbox run-with global set fw_cfg smbios iscsi nbd tpmdev vnc spice audiodev add-fd
acpitable numa nic net fsdev virtfs serial parallel monitor qmp mon trace icount plugin display
vga compat semihosting-config
"""
LISTS = frozenset(_LISTS.split())

#: QEMU's options whose value is a kernel's command line.
KERNELS = frozenset({"append"})

#: Keys of those lists, and of QMP's arguments, whose values describe a machine and open nothing.
_KEYS = """
accel alias backend channel chardev class cpu cpu-type device devno driver dst fmt format frontend
fsdev guest id implementation interface index kind label machine media mode model name netdev node
node-name nic process prop qom-path qom-type qtype src subdriver target tlsid type unit variant
version vendor product manufacturer family addr bus chassis cid file filename fd fdset fds host
host_device ifname local localaddr mac macaddr mem-path multifunction path port ports romfile slot
socket to unix uri vectors amount bootindex bps clusters cores cpus cyls dies heads iops
l2-cache-size max maxcpus max-bytes memory modules num-queues nr ns nvectors offset order pool
prealloc-threads queues queue-size rate reconnect reconnect-ms secs size slots sockets split
splash-time threads timeout trans write_zeroes x y abstract append aio cache cache.direct
cache.no-flush close copy-on-read csum debug detect detect-zeroes discard direct disable-legacy
disable-modern downscript dump enable-kvm event_idx force fw_cfg guest-panic hpet ioeventfd ipv4
ipv6 iommu_platform kvmclock logappend menu merge mrg_rxbuf mux native no-flush nodelay off on
once panic pic policy prealloc read-only readonly reboot-timeout removable rerror restrict rombar
script seccomp server share shutdown signal smm snapshot status strict tcg telnet thread timestamp
tx usb usb_version vhost vhostforce vmport vnet_hdr wait websocket werror backing bitmap bootmenu
children compare_timeout drive expired_scan_cycle export file.driver file.filename file.host
file.path file.port hidden indev insert iothread iothreads job-id max_queue_size outdev parent
position primary_in queue read-pattern replaces secondary_in sync top-id vnet_hdr_support
vote-threshold key-secret password-secret encrypt.key-secret file.key-secret file.password-secret
tls-creds tls-authz tls-hostname authz scsi-id channel lun iobase iobase2 irq base romsize wwn
clock driftfix guest-reset pcie chassis_nr firmware kernel initrd dtb endpoint verify-peer
priority dir rules match
"""
KEYS = frozenset(_KEYS.split())

#: Parameters of a kernel whose values show how it boots, and nothing else.
_KERNEL = """
acpi apparmor audit biosdevname clocksource cma console consoleblank crashkernel debug
default_hugepagesz earlycon earlyprintk elevator fsck.mode fsck.repair hugepages hugepagesz idle
init initcall_debug intel_iommu ip iommu isolcpus kvm-clock lapic lockdown log_buf_len loglevel
lsm maxcpus mem mitigations module_blacklist modprobe.blacklist net.ifnames no_timer_check nohz
nosmp nr_cpus numa panic pci printk.devkmsg printk.time quiet raid random.trust_cpu
rcupdate.rcu_expedited rd.break rdinit reboot resume ro root rootdelay rootflags rootfstype
rootwait rw security selinux splash swiotlb systemd.log_level systemd.show_status systemd.unit
sysrq_always_enabled transparent_hugepage tsc tsx vga video virtio_net.napi_tx watchdog
"""
KERNEL = frozenset(_KERNEL.split())

#: Whole families of them: the lab's own guest is described so.
KERNEL_PREFIXES = ("coloctl.", "virtio_", "kvm.", "net.ipv4.", "sysctl.net.", "hung_task")
