"""``python -m utils.rehearsal``."""

import sys

from utils.rehearsal.rehearse import main

sys.exit(main())
