"""On PYTHONPATH: a process whose wall clock is an hour ahead.  Times of files are the kernel's."""

import time

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + 3600
time.time_ns = lambda: _time_ns() + 3600 * 10**9
