"""``python -m utils.kaggle``."""

import sys

from utils.kaggle.commands import main

sys.exit(main())
