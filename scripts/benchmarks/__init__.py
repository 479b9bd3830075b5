"""How fast blobfs is, beside rclone and curl: the code of `scripts/bench`.

workloads  what is measured, and how large
sources    the files that the workloads store and read
services   Azurite, also behind relays that delay every request
relay      such a relay, a process of its own
ceiling    nginx, faster than any client
peers      blobfs, rclone and curl: how each is mounted, filled and watched
runner     the rounds: every peer in turn, from a fresh start
machine    processes and what the kernel counts of them
results    medians and ratios, the table and the JSON
picture    the same as a chart
"""
