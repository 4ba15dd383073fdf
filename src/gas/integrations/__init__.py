"""Other programs' forms of a table: each file needs the program it is named after only when it is used."""
