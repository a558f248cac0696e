"""Students in other formats: written, run, compared."""
