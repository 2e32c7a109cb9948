"""A server for machines: scans in, masks out, for several at once with one model in memory."""
