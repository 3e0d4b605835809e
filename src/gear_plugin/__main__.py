"""`python -m gear_plugin` is `gear`."""

from gear_plugin.cli import main

if __name__ == "__main__":
    main()
