"""
Small virtual machines with Debian's kernels: what the machine that runs the
tests has not, an NFS server and client, and other versions of Linux.

    debian    kernels and a root filesystem, from Debian's packages
    machine   boots one of them and runs a command in it
    guest/    tests that run inside, as root, by pytest
"""
