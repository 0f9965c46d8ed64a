"""The running parts of the daemon, one per step of the data flow."""
