"""Reports: what methods found, written for people and for programs."""
