"""One file per loss, one function each: returns (B,) and a dict of detached scalars.  Pure torch."""
