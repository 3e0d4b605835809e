"""
A whole node without a Docker engine, and what may happen to it: the real
supervisor with its three processes, real mounts, a real store; the tests play
dockerd on the plugin socket.
"""
