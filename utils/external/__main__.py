"""``python -m utils.external``."""

from utils.external.convert import main

main()
