"""Draw every method's trajectories on two toy landscapes; see --help."""

from mtrl.cli.commands import main_gallery

if __name__ == "__main__":
    raise SystemExit(main_gallery())
