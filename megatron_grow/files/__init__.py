"""What is asked of a file system: that a file is there, whole, and nobody else's."""
