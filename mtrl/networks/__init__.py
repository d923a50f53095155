"""Networks as pure functions of named parameters, for all tasks at once; one file per architecture."""
