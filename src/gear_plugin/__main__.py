"""`python -m gear_plugin` is `gear`."""

from gear_plugin.cli import entry

if __name__ == "__main__":
    entry()
