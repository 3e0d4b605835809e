"""
One list of docker operations, run on two engines: overlay2 and Gear.

A *scenario* is a function of a *side*: an engine, and an image on it to work
with.  It does what a user of docker does and notes what it sees; two sides
must have noted the same.  Knows nothing of Gear but its driver's name.

    tars        a tar, header by header, as lines of text
    plain       text of docker without what is another at each run
    side        an engine as a scenario sees it, and its notes
    base        the image that scenarios work with
    scenarios   what is done, by subject: changes, files, images, builds, ...
    compare     scenarios run on sides, and the differences, readable
"""
