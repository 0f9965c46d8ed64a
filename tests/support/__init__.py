"""What several tests and benches share."""
