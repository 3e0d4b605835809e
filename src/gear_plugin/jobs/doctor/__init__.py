"""
`gear doctor`: looks at everything that Gear stands on, and says what to do.

Every check runs in a process of its own (`apart`), because what it touches may
hang or crash: one that does becomes a line like any other.
"""

from gear_plugin.jobs.doctor.diagnose import Patient, diagnose
from gear_plugin.jobs.doctor.finding import Finding, Status

__all__ = ["Finding", "Patient", "Status", "diagnose"]
