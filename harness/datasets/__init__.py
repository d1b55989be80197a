"""Images with stable ids and a digest, read from where they lie and checked; one file a source."""
