"""What a demo, a test and CI need: namespaces and taps, the guest image, QEMU binaries."""
