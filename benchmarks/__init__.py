"""Scripts that measure; each has its command in its head."""
