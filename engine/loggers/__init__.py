"""What a run writes for people: its numbers, its log, the terminal, and other people's dashboards."""
