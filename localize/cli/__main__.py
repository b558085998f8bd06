"""Run the command line as ``python -m localize.cli``."""

from localize.cli.main import main

main()
