"""``python -m stones_cli`` is the `stones` command."""

from stones_cli.main import main

if __name__ == "__main__":
    main()
