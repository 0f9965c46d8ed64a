"""The one shape of each noun, as every surface shows it: JSON values, and sentences for people."""
