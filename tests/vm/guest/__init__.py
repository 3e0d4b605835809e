"""Tests that run in a virtual machine, which is switched off afterwards: they may break it."""
