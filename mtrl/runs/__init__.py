"""What a run leaves behind: its directory, checkpoints and logs. `mtrl.report` reads them."""
