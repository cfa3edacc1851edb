"""A progressive run beside its fixed-size twin: numbers, pictures, a table."""
