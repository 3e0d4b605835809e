"""
Programs that read what came from outside, each in a process that may die:
`untar` unpacks a layer below its own root directory, `check` checks an index
under limits of memory and time.

Nothing is imported here, and these modules import little: such a process is
started for every layer, and half of its life was loading what it never used.
"""
