"""`python -m foveal.cli`, for launchers that start modules."""

from foveal.cli import main

if __name__ == "__main__":
    main()
