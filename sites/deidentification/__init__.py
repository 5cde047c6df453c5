"""The import of an archive's export without what names the patients."""
