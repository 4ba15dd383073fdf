"""Published files read as data: pickles that run nothing, students and teacher sets, and our form of each."""
