"""`python -m phase8`: see `phase8.cli`."""

import sys

from phase8.cli import main

sys.exit(main())
