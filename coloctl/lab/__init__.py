"""Provide what a demo, a test and CI need: namespaces, taps, the guest image, QEMU binaries."""
