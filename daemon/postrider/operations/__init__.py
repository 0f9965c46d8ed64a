"""What people do, one function each: its rules and rights and its audit, the same for every surface."""
