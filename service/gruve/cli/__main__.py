"""`python -m gruve.cli`, for where the script is not on the path."""

import sys

from gruve.cli import main

sys.exit(main())
