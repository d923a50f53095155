"""Draw success over minutes; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_pictures.success"))
