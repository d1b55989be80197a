"""What tries to break a defense or a record: the battery with its verdict, readouts, convergence, verification."""
