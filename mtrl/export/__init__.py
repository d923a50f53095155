"""A policy to take away: files that a program with torch and numpy alone can act from."""
