"""Draw every method's trajectories on two toy landscapes; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_gallery.command"))
