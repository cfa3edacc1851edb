"""A rehearsal: the real command on ranks whose GPUs are not there."""
