"""``python -m microscope_tui``: the same as ``moe-microscope``."""

from microscope_tui.cli import main

if __name__ == "__main__":
    main()
