"""Tools of the kernel ladder: interpreter, memory checker, mutants, stub driver, code reading."""
