"""Study B of docs/decisions/studies.md: regressions in unequal units and with opposed targets."""
