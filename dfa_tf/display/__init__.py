"""What a person sees: progress, tables, pages and figures."""
