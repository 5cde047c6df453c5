"""Import of an archive's export without anything that names the patients."""
