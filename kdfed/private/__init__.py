"""What kdfed needs of other libraries that is private there: one module a library."""
