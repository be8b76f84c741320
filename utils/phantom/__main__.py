"""``python -m utils.phantom``."""

from utils.phantom.competition import main

main()
