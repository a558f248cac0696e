"""What a run came to: read back, described and drawn."""
