"""`python -m diffseg.runtime` is the command line too."""

from diffseg.runtime.cli import main

main()
