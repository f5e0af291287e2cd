"""What a run leaves on disk: its folder, lock, provenance, checkpoints and logs."""
