"""What a comparison leaves besides its cells: page, charts, tables, JSON."""
