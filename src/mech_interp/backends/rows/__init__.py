"""Planning and naive execution of sweep rows."""
