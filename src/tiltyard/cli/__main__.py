"""`python -m tiltyard.cli`, e.g. under torchrun."""

import sys

from tiltyard.cli.application import main

sys.exit(main())
