"""One QEMU described: its options, its graphs, its images, and what its accelerator is worth."""
