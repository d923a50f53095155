"""Networks as pure functions of named parameters, joint or one set per task; one file per architecture."""
