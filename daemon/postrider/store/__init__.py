"""What Postrider keeps in PostgreSQL, one module per table family."""
