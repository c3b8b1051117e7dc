"""Entry point of ``python -m robust_ensembles`` and of the command ``robust-ensembles``."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
