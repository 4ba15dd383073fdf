"""``python -m gas``: the command line, also under ``torchrun -m``."""

from gas.cli import main

if __name__ == "__main__":
    main()
