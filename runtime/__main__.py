"""`python -m diffseg` is the command line too."""

from diffseg.cli.app import main

main()
