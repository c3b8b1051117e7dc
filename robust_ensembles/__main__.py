"""``python -m robust_ensembles``, and the command ``robust-ensembles``."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
