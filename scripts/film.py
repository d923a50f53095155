"""Show videos of several tasks side by side in one GIF; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_pictures.film"))
