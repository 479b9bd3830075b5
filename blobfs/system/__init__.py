"""What makes blobfs at home on a Linux system: the files that other programs look for, made from
the command line's own parsers and the one table of options, so that they cannot drift.

    layout       where they go
    files        writing and removing them, below a root
    wrappers     the programs: blobfs, and the helpers of mount(8) and umount(8)
    manual       man pages
    completion   of bash, zsh and fish
    units        of systemd, and the line for fstab
    updatedb     what locate(1) shall not look into
"""
