"""What is kept on disk, and by which name it is found again."""
