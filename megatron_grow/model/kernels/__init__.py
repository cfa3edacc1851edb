"""Parts of a model in fewer kernels: one file each, a row in :mod:`.table`."""
