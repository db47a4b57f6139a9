"""`python -m foveal.cli`, for launchers that start modules."""

from foveal.cli import main

main()
