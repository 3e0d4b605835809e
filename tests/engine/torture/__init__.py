"""
Torture: containers run and layers are applied, many at a time, while the plugin,
its daemons and dockerd are killed at random moments.

    workload   what the workers do, and what must hold while they do it
    killers    who is killed when
    verdict    what must hold afterwards, and the report

A run follows from its seed as far as threads and processes let it.  Errors that
docker shows for a call that was under way when something was killed are
allowed, and the call is made again; wrong bytes, hangs and leaks are not.
"""
