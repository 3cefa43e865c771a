"""`python -m layerbook`."""

import sys

from layerbook.cli import main

sys.exit(main())
