"""`python -m layerbook`."""

import sys

from layerbook.cli import main

if __name__ == "__main__":  # a forked process imports this file again under another name
    sys.exit(main())
